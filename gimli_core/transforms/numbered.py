"""Losses that take the number of the inner step: `(theta, phi_loss, batch, j)`.

The number comes with the batch, so that it reaches a loss by whatever way a batch does: replayed, vectorised over
tasks, compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gimli_core.notation import Loss, Tensors
from gimli_core.problem import Problem

__all__ = ["Numbered", "called", "numbered", "takes_j", "with_j"]


class Numbered(NamedTuple):
    """A batch and the number of its step, which all tasks share."""

    batch: Any
    j: Any  # an integer tensor of shape []


def takes_j(loss: Any) -> bool:
    """Whether a loss has an argument called `j` besides its first three, however these are called."""
    try:
        return "j" in list(inspect.signature(loss).parameters)[3:]
    except (TypeError, ValueError):  # a builtin tells nothing of its arguments
        return False


def numbered(problem: Problem) -> tuple[Problem, bool, bool]:
    """The problem whose losses find j in their batch, and which of its losses (the inner, the outer) take it.

    Made once a problem, so that what is compiled for it is found again.
    """
    if problem.memo.numbered is None:
        inner, outer = takes_j(problem.train_loss), takes_j(problem.val_loss)
        form = None  # the problem itself, which must not hold itself
        if inner or outer:
            train_loss = _OfNumbered(problem.train_loss) if inner else problem.train_loss
            val_loss = _OfNumbered(problem.val_loss) if outer else problem.val_loss
            form = Problem(train_loss, val_loss, problem.optimizer, problem.modules)
        problem.memo.numbered = form, inner, outer
    form, inner, outer = problem.memo.numbered
    return form or problem, inner, outer


def with_j(batches: Callable[[int], Any], takes: bool) -> Callable[[int], Any]:
    """The batches with the number of their step, for a loss that takes it."""
    return (lambda j: Numbered(batches(j), torch.tensor(j))) if takes else batches


def called(loss: Any, theta: Tensors, phi_loss: Tensors, batch: Any, j: int) -> Any:
    """What a user's loss returns at step j."""
    return loss(theta, phi_loss, batch, j=torch.tensor(j)) if takes_j(loss) else loss(theta, phi_loss, batch)


class _OfNumbered:
    """A loss of (theta, phi_loss, batch, j) as one of (theta, phi_loss, (batch, j))."""

    def __init__(self, loss: Loss) -> None:
        self.loss: Any = loss

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Numbered) -> Any:
        return self.loss(theta, phi_loss, batch.batch, j=batch.j)
