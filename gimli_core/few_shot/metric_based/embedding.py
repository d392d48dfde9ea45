"""Embeddings of episodes, and what all metrics make of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

__all__ = ["class_means", "embedded"]


def embedded(network: nn.Module, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
    """Support and queries [T, n, …] through one network, all in one batch."""
    count = support_x.shape[1]
    together = torch.cat([support_x, query_x], 1)
    out = network(together.flatten(0, 1)).unflatten(0, together.shape[:2])
    return out[:, :count], out[:, count:]


def class_means(shown: Tensor, support_y: Tensor) -> Tensor:
    """[T, way, …]: the mean of [T, S, …] over the rows of each class."""
    member = one_hot(support_y).to(shown.dtype)
    share = member / member.sum(1, keepdim=True)
    return torch.einsum("tsk,ts...->tk...", share, shown)
