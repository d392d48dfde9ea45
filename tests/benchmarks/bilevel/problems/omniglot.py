"""An initialisation for 5-way 1-shot tasks of real characters, to which adapted weights are drawn (iMAML).

    ell = Σ_t [ cross entropy_t(θ_t) + ½ λ‖θ_t − φ‖² ],   θ_0 = φ,   L = Σ_t cross entropy of the queries (θ_t) / T

Rajeswaran et al. 2019. The tasks are the same at every outer step, so that a single-loop method, which keeps a θ_t for
each of them, has the same problem; together they are one inner problem whose Hessian is a block a task.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.bilevel.problem import Bilevel, Tensors
from tests.benchmarks.speed import workloads

PULL = 0.5


def omniglot(seed: int, data: Path, tasks: int = 4, width: int = 8, steps: int = 10) -> Bilevel:
    torch.manual_seed(seed)
    work = workloads.omniglot(data, steps=steps, tasks=tasks, width=width)
    each = torch.vmap(lambda theta, batch: work.val_loss(theta, {}, batch))

    def train_loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
        away = torch.stack([(v - phi[k]).square().sum() for k, v in theta.items()]).sum()
        return each(theta, batch).sum() + PULL * away / 2

    def val_loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
        return each(theta, batch).mean()

    def start(phi: Tensors) -> Tensors:
        return {k: v.expand(tasks, *v.shape) for k, v in phi.items()}

    x, y = work.train
    return Bilevel(
        "omniglot",
        train_loss,
        val_loss,
        work.theta_0,
        start,
        (x[0], y[0]),
        work.val,
        steps,
        lr=0.4,
        outer_lr=0.03,
        convex=False,
    ).to(torch.float32)
