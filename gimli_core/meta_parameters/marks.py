"""Marks on a value whose leading dimension means something: steps, or tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["PerStep", "PerTask", "per_step", "per_task", "unmarked"]


@dataclass(frozen=True, eq=False)
class PerStep:
    """A value whose leading dimension counts the steps; made by `per_step`."""

    value: Any


@dataclass(frozen=True, eq=False)
class PerTask:
    """A value whose leading dimension counts the tasks; made by `per_task`."""

    value: Any


def per_step(value: Tensor | Mapping[str, Tensor]) -> PerStep:
    """Mark a hyperparameter's leading dimension as the steps, where its shape alone is ambiguous.

    Args:
        value: a tensor `[J, ...]`, or a dict of such tensors keyed by tensor or group names.

    >>> import torch, gimli_core as gimli
    >>> phi_opt = {"lr": gimli.per_step({"w": torch.full((3,), 0.1)})}   # w has 3 elements, and J = 3
    """
    return PerStep(value)


def per_task(value: Any) -> PerTask:
    """Mark what each task has of its own, beside `tasks=T`: theta_0, a state, or entries of phi_loss and phi_opt.

    Args:
        value: a tensor `[T, ...]`, or a dict of such tensors (nested, for a state). A hyperparameter that also counts
            steps is `[T, J, ...]`: `per_task(per_step(…))`.

    >>> import torch, gimli_core as gimli
    >>> phi_opt = {"lr": gimli.per_task(torch.tensor([0.1, 0.2, 0.3]))}   # T = 3 tasks, one learning rate each
    """
    return PerTask(value)


def unmarked(value: Any) -> Any:
    """The value without its marks."""
    while isinstance(value, (PerStep, PerTask)):
        value = value.value
    return value
