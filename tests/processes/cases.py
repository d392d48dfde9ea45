"""The inner loops that tests run over ranks: a small network with a learned penalty, its batches whole and in parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import gimli_core as gimli
from gimli_core.optimizers import SGD, Adagrad, Adam
from gimli_core.trees import tensors

__all__ = ["RULES", "Inner", "call", "inner", "mean_square", "part_of", "same_bits", "to_rounding"]

RULES = [(SGD(momentum=0.5), {"lr": 0.1, "momentum": 0.5}), (Adam(), {"lr": 0.05}), (Adagrad(), {"lr": 0.2})]


class Inner(NamedTuple):
    """The arguments of a meta-gradient but for the problem."""

    theta_0: dict[str, Tensor]
    batches: list[Any]
    val_batch: Any
    phi_loss: dict[str, Tensor]


def mean_square(theta: Any, phi: Any, batch: Any, dropout: float = 0.0) -> Tensor:
    x, y = batch
    hidden = F.dropout(torch.tanh(x @ theta["a"]), dropout)
    decay = phi["log_l2"].exp() * sum((v**2).sum() for v in theta.values())
    return ((hidden @ theta["b"] - y) ** 2).mean() + decay


def val_loss(theta: Any, phi: Any, batch: Any) -> Tensor:
    return ((torch.tanh(batch[0] @ theta["a"]) @ theta["b"] - batch[1]) ** 2).mean()


def inner(steps: int, *tasks: int, examples: int = 7) -> Inner:
    """With a number of tasks every batch has a leading dimension of them."""
    g = torch.Generator().manual_seed(0)
    theta_0 = {"a": torch.randn(3, 4, generator=g), "b": torch.randn(4, 1, generator=g)}
    data = [
        (torch.randn(*tasks, examples, 3, generator=g), torch.randn(*tasks, examples, 1, generator=g))
        for _ in range(steps + 1)
    ]
    return Inner(theta_0, data[:steps], data[steps], {"log_l2": torch.tensor(-3.0)})


def call(problem: gimli.Problem, given: Inner, phi_opt: dict[str, float], **more: Any) -> gimli.MetaGradient:
    learned = {k: torch.tensor(v) for k, v in phi_opt.items()}
    more = {"phi_loss": given.phi_loss, **more}
    return gimli.meta_gradient(problem, given.theta_0, given.batches, given.val_batch, phi_opt=learned, **more)


def part_of(batch: Any, rank: int, size: int, dim: int = 0) -> Any:
    """A rank's part of a batch, the first ranks' larger by one."""
    return tuple(x.tensor_split(size, dim)[rank] for x in batch)


def to_rounding(found: Any, expected: Any) -> None:
    torch.testing.assert_close(list(tensors(found)), list(tensors(expected)), rtol=1e-12, atol=1e-14, equal_nan=True)


def same_bits(found: Any, expected: Any) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
