"""A classifier whose training examples carry weights, some labels planted wrong: what `gimli attribute` scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gimli_core.meta_parameters.indexed import indexed
from gimli_core.notation import Tensors
from gimli_core.optimizers import AdamW
from gimli_core.problem import Problem

__all__ = ["Queries", "Setting", "flagged", "hard_queries", "logits", "output_loss", "outputs", "plant", "setting"]

BATCH = 100
LR = 3e-3
HIDDEN = 32
QUANTILES = (0.99, 0.97, 0.95, 0.9, 0.8)  # of the test rows' losses: the queries, from hard to middling


class Queries(NamedTuple):
    """Rows that are a query each, and rows whose mean loss is one more."""

    x: Tensor  # [q, features]
    y: Tensor  # [q]
    x_val: Tensor  # [n, features]
    y_val: Tensor  # [n]


class Setting(NamedTuple):
    """A training to attribute, as `scores` and `leave_out` take it."""

    problem: Problem
    theta_0: Tensors
    batches: list[dict[str, Tensor]]  # [J]
    phi_loss: dict[str, Any]
    full_batch: dict[str, Tensor]  # all N examples as one batch


def plant(y: Tensor, classes: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(labels of which that share is wrong, each a random other class; [N] bool, which)."""
    planted = torch.zeros(len(y), dtype=torch.bool)
    planted[torch.randperm(len(y), generator=generator)[: round(share * len(y))]] = True
    shift = torch.randint(1, classes, (len(y),), generator=generator)
    return torch.where(planted, (y + shift) % classes, y), planted


def setting(x: Tensor, y: Tensor, classes: int, steps: int, generator: torch.Generator) -> Setting:
    """A tanh network with one hidden layer under AdamW, in `steps` batches of epochs in random order."""
    N, features = x.shape
    sizes = {"hidden": (HIDDEN, features), "out": (classes, HIDDEN)}
    theta_0 = {
        f"{name}.weight": torch.randn(shape, generator=generator, dtype=x.dtype) / shape[1] ** 0.5
        for name, shape in sizes.items()
    } | {f"{name}.bias": torch.zeros(shape[0], dtype=x.dtype) for name, shape in sizes.items()}
    n = min(BATCH, N)
    an_epoch = N // n
    order = [torch.randperm(N, generator=generator) for _ in range(-(-steps // an_epoch))]
    rows = [order[j // an_epoch][j % an_epoch * n :][:n] for j in range(steps)]
    batches = [{"x": x[r], "y": y[r], "rows": r} for r in rows]
    phi_loss = {"w": indexed(torch.ones(N, dtype=x.dtype))}
    problem = Problem(_weighted, _queries, AdamW(lr=LR))
    return Setting(problem, theta_0, batches, phi_loss, {"x": x, "y": y, "rows": torch.arange(N)})


def logits(theta: Tensors, x: Tensor) -> Tensor:
    """[n, classes] of rows [n, features]."""
    hidden = torch.tanh(x @ theta["hidden.weight"].T + theta["hidden.bias"])
    return hidden @ theta["out.weight"].T + theta["out.bias"]


def outputs(theta: Tensors, batch: dict[str, Tensor]) -> Tensor:
    """The first half of the inner loss."""
    return logits(theta, batch["x"])


def output_loss(f: Tensor, phi: Tensors, batch: dict[str, Tensor]) -> Tensor:
    """The second."""
    return (phi["w"] * cross_entropy(f, batch["y"], reduction="none")).mean()


def hard_queries(theta: Tensors, x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> tuple[Tensor, Queries]:
    """(numbers, queries) of test rows from hard to middling, by their loss at theta, and the validation rows."""
    order = cross_entropy(logits(theta, x), y, reduction="none").argsort()
    numbers = torch.stack([order[int(q * (len(order) - 1))] for q in QUANTILES])
    return numbers, Queries(x[numbers], y[numbers], x_val, y_val)


def _weighted(theta: Tensors, phi: Tensors, batch: dict[str, Tensor]) -> Tensor:
    return output_loss(outputs(theta, batch), phi, batch)


def _queries(theta: Tensors, phi: Tensors, batch: Queries) -> Tensor:
    """[q + 1]: the loss of each query, and the mean loss of the validation rows."""
    each = cross_entropy(logits(theta, batch.x), batch.y, reduction="none")
    return torch.cat([each, cross_entropy(logits(theta, batch.x_val), batch.y_val).reshape(1)])


def flagged(harm: Tensor, planted: Tensor, count: int) -> tuple[float, float]:
    """(precision, recall) of the `count` examples of highest harm as a guess at the planted ones."""
    right = int(planted[harm.topk(count).indices].sum())
    return right / count, right / max(int(planted.sum()), 1)
