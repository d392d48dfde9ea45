"""Two quadratics, whose answer is a formula.

    ell = ½ θᵀAθ − θᵀ(Bφ + c),   L = ½‖θ − t‖² + ½ μ‖φ‖²,   θ* = A⁻¹(Bφ + c),   dL/dφ = Bᵀ A⁻¹ (θ* − t) + μφ

A has eigenvalues from 0.1 to 1: conditioned as in the simulated problem of Dagréou et al. 2024 (benchmark_bilevel).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.benchmarks.bilevel.problem import Bilevel, Tensors

SIZE, LEAST, DECAY = 100, 0.1, 0.1


def quadratics(seed: int, size: int = SIZE, steps: int = 100) -> Bilevel:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    basis = torch.linalg.qr(normal(size, size)).Q
    A = basis @ torch.diag(torch.logspace(0, torch.tensor(LEAST).log10().item(), size, dtype=torch.float64)) @ basis.T
    B, c, t, phi = normal(size, size) / size**0.5, normal(size, 1), normal(size, 1), normal(size, 1)

    def train_loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, ...]) -> Tensor:
        A, B, c = batch
        w = theta["w"]
        return (w * (A @ w) / 2 - w * (B @ phi["x"] + c)).sum()

    def val_loss(theta: Tensors, phi: Tensors, t: Tensor) -> Tensor:
        return ((theta["w"] - t) ** 2).sum() / 2 + DECAY * (phi["x"] ** 2).sum() / 2

    def closed_form(problem: Bilevel) -> Tensors:
        (A, B, c), t, x = problem.train, problem.val, problem.phi_0["x"]
        away = torch.linalg.solve(A, B @ x + c) - t
        return {"x": B.T @ torch.linalg.solve(A, away) + DECAY * x}

    return Bilevel(
        "quadratics",
        train_loss,
        val_loss,
        {"x": phi},
        lambda phi: {"w": torch.zeros(size, 1, dtype=torch.float64)},
        (A, B, c),
        t,
        steps,
        lr=1.0,
        outer_lr=0.3,
        convex=True,
        closed_form=closed_form,
    ).to(torch.float32)
