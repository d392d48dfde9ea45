"""The workload of the design: MNIST, MLP 784-512-512-10, batch 128, Adam, per-tensor learning rates and L2."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import gimli_core as gimli

SIZES = (784, 512, 512, 10)
BATCH = 128
DATA = Path(__file__).parents[3] / "shared" / "data" / "mnist.npz"


def load(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """`count` training images [count, 784] in [0, 1], drawn at random, and their labels."""
    if not path.exists():
        raise SystemExit(
            f"{path}: not found. Give --data PATH to an .npz with MNIST's train_images and train_labels "
            "(the set is at yann.lecun.com/exdb/mnist)."
        )
    with np.load(path) as arrays:
        x, y = arrays["train_images"], arrays["train_labels"]
    drawn = torch.randperm(len(x))[:count].numpy()
    return torch.tensor(x[drawn].reshape(count, -1), dtype=torch.float32) / 255, torch.tensor(
        y[drawn], dtype=torch.int64
    )


def mlp(theta: dict[str, Tensor], x: Tensor) -> Tensor:
    last = len(theta) // 2 - 1
    for i in range(last + 1):
        x = F.linear(x, theta[f"w{i}"], theta[f"b{i}"])
        x = torch.relu(x) if i < last else x
    return x


def l2(theta: dict[str, Tensor], phi_loss: dict[str, Tensor]) -> Tensor:
    return torch.stack([phi_loss[k].exp() * v.square().sum() for k, v in theta.items()]).sum()


def train_loss(theta: dict[str, Tensor], phi_loss: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(mlp(theta, batch[0]), batch[1]) + l2(theta, phi_loss)


def val_loss(theta: dict[str, Tensor], phi_loss: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(mlp(theta, batch[0]), batch[1])


class Workload:
    """One meta-gradient of J steps, ready to run by the engine or by autograd through a plain unroll."""

    def __init__(self, steps: int, data: Path = DATA, held_out: int = 1024, sizes: tuple[int, ...] = SIZES) -> None:
        torch.manual_seed(0)
        x, y = load(data, 4096 + held_out)
        self.steps = steps
        self.pool, self.val = (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])
        self.theta_0: dict[str, Tensor] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            self.theta_0[f"w{i}"] = torch.randn(fan_out, fan_in) * (2 / fan_in) ** 0.5
            self.theta_0[f"b{i}"] = 0.01 * torch.randn(
                fan_out
            )  # not 0, so that no gradient is: autograd would give nan there
        self.lr = {k: torch.tensor(1e-3) for k in self.theta_0}
        self.log_l2 = {k: torch.tensor(-9.0) for k in self.theta_0}
        self.problem = gimli.Problem(train_loss, val_loss, gimli.optimizers.Adam())

    def batch(self, j: int) -> tuple[Tensor, Tensor]:
        start = (j * BATCH) % (len(self.pool[0]) - BATCH + 1)
        return self.pool[0][start : start + BATCH], self.pool[1][start : start + BATCH]

    def engine(self, memory: Any = None) -> dict[str, Tensor]:
        result = gimli.meta_gradient(
            self.problem,
            self.theta_0,
            self.batch,
            self.val,
            steps=self.steps,
            phi_opt={"lr": self.lr},
            phi_loss=self.log_l2,
            memory=memory,
        )
        return result.A_opt["lr"] | {f"l2.{k}": v for k, v in result.A_loss.items()}

    def autograd(self) -> dict[str, Tensor]:
        """The same by autograd through the graph of a plainly written unroll of Adam."""
        lr = {k: v.clone().requires_grad_() for k, v in self.lr.items()}
        log_l2 = {k: v.clone().requires_grad_() for k, v in self.log_l2.items()}
        theta = {k: v.clone().requires_grad_() for k, v in self.theta_0.items()}
        m = {k: torch.zeros_like(v) for k, v in theta.items()}
        v = {k: torch.zeros_like(x) for k, x in theta.items()}
        for j in range(self.steps):
            loss = train_loss(theta, log_l2, self.batch(j))
            G = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
            m = {k: 0.9 * m[k] + 0.1 * g for k, g in G.items()}
            v = {k: 0.999 * v[k] + 0.001 * g * g for k, g in G.items()}
            c1, c2 = 1 - 0.9 ** (j + 1), 1 - 0.999 ** (j + 1)
            theta = {k: x - lr[k] / c1 * m[k] / ((v[k] / c2).sqrt() + 1e-8) for k, x in theta.items()}
        loss = val_loss(theta, log_l2, self.val)
        found = torch.autograd.grad(loss, [*lr.values(), *log_l2.values()])
        return dict(zip([*lr, *(f"l2.{k}" for k in log_l2)], found, strict=True))
