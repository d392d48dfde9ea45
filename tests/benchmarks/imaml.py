"""iMAML's synthetic problem: linear regressions that share a prior, whose meta-gradient is known in closed form.

theta_t = argmin (1/2m) ||x_t w - y_t||² + lambda/2 ||w - theta_0||² = H_t⁻¹ (x_t' y_t / m + lambda theta_0)
dL/dtheta_0 = mean_t lambda H_t⁻¹ grad L_val,t(theta_t),   H_t = x_t' x_t / m + lambda I
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import gimli_core as gimli

__all__ = ["Synthetic", "squares", "synthetic"]


class Synthetic(NamedTuple):
    """T tasks: the arguments of `gimli.compare`, and what is right."""

    arguments: dict[str, Any]
    B_0: Tensor
    minima: Tensor  # [T, n]


def squares(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """(1/2m) ||x w - y||²."""
    x, y = batch
    return (x @ theta["w"] - y).square().mean() / 2


def synthetic(
    tasks: int, n: int, *, strength: float = 0.3, spread: float = 0.7, lr: float = 0.5, momentum: float = 0.0
) -> Synthetic:
    """Features of scales 1 to 10^-spread; twice as many rows as features, to learn from and to validate on."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    scale = torch.logspace(0, -spread, n)
    prior, theta_0 = drawn(n), drawn(n)
    truth = prior + 0.3 * drawn(tasks, n)
    (x, y), (x_val, y_val) = (
        (x, torch.einsum("tmn,tn->tm", x, truth) + 0.1 * drawn(tasks, 2 * n))
        for x in (drawn(tasks, 2 * n, n) * scale for _ in range(2))
    )
    m, identity = 2 * n, torch.eye(n)
    H = x.transpose(1, 2) @ x / m + strength * identity
    minima = torch.linalg.solve(H, torch.einsum("tmn,tm->tn", x, y) / m + strength * theta_0)
    away = torch.einsum("tmn,tn->tm", x_val, minima) - y_val
    B_0 = strength * torch.linalg.solve(H, torch.einsum("tmn,tm->tn", x_val, away) / m).mean(0)
    problem = gimli.proximal(gimli.Problem(squares, squares, gimli.optimizers.SGD(lr=lr, momentum=momentum)), strength)
    arguments = {
        "problem": problem,
        "theta_0": {"w": theta_0},
        "train_batch": (x, y),
        "val_batch": (x_val, y_val),
        "tasks": tasks,
    }
    return Synthetic(arguments, B_0, minima)
