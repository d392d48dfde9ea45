"""A small problem with a learned start and a learned rate, for the tests of this room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gimli_core as gimli

TARGETS = [torch.tensor([1.0, -0.5], dtype=torch.float64) + 0.1 * j for j in range(8)]


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], target: Tensor) -> Tensor:
    return torch.cosh(theta["w"] - target).sum()


def problem(optimizer: Any = None) -> gimli.Problem:
    return gimli.Problem(loss, loss, optimizer or gimli.optimizers.Adam())


def leaves() -> dict[str, Tensor]:
    return {
        "w": torch.tensor([0.2, 0.3], dtype=torch.float64, requires_grad=True),
        "log_lr": torch.tensor(-2.0, dtype=torch.float64, requires_grad=True),
    }


def learned_rate(phi: dict[str, Tensor], targets: Any) -> dict[str, Any]:
    """The arguments of an inner loop from phi["w"], with rate exp(phi["log_lr"])."""
    return {
        "theta_0": {"w": phi["w"]},
        "train_batches": targets,
        "val_batch": targets[-1],
        "phi_opt": {"lr": phi["log_lr"].exp()},
    }
