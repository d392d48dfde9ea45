"""A loss with weights for every token, handed its batch's rows of them or looking them up itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

N, J = 7, 4  # examples that have weights, and inner steps


def weighted(theta: Any, phi: Any, batch: Any) -> Tensor:
    """Weights for every token, [n, 2], and a learned penalty beside them."""
    error = torch.tanh(batch["x"] @ theta["w"]) - batch["y"]
    return (phi["of_each"] * error.square()).mean() + phi["l2"].exp() * theta["w"].square().sum()


def dense(theta: Any, phi: Any, batch: Any) -> Tensor:
    return weighted(theta, {**phi, "of_each": phi["of_each"][batch["rows"]]}, batch)


def val_loss(theta: Any, phi: Any, batch: Any) -> Tensor:
    return (torch.tanh(batch["x"] @ theta["w"]) - batch["y"]).square().mean() * (1 + phi["l2"])


def several(theta: Any, phi: Any, batch: Any) -> Tensor:
    return torch.stack([val_loss(theta, phi, batch), theta["w"].square().sum()])
