"""A batch in parts whose losses see their own rows of what the step has looked up: indexed entries of phi_loss."""

from __future__ import annotations

from typing import Any, NamedTuple

from gimli_core.derivatives.micro_batches import MicroBatches
from gimli_core.meta_parameters.indexed import Rows
from gimli_core.notation import Loss, Tensors
from gimli_core.problem import Problem

__all__ = ["Sliced", "of_slices", "sliced"]


class Sliced(NamedTuple):
    """A part, and where its rows stand among those of the step: `{name: (start, stop)}`."""

    batch: Any
    spans: dict[str, tuple[int, int]]


def sliced(batch: Any, rows: dict[str, Rows]) -> Any:
    """Parts that know where their rows stand; a batch that is not in parts has them all."""
    if not isinstance(batch, MicroBatches):
        return batch
    spans = {name: of_entry.spans() for name, of_entry in rows.items()}
    parts = [Sliced(part, {name: each[i] for name, each in spans.items()}) for i, part in enumerate(batch.parts)]
    return batch._replace(parts=tuple(parts))


def of_slices(problem: Problem) -> Problem:
    """The problem whose inner loss takes such parts. Made once a problem, so that what is known of it is kept."""
    forms = problem.memo.forms
    if "slices" not in forms:
        loss = _OfSliced(problem.train_loss)
        forms["slices"] = Problem(loss, problem.val_loss, problem.optimizer, problem.modules)
    return forms["slices"]


class _OfSliced:
    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        if not isinstance(batch, Sliced):
            return self.loss(theta, phi_loss, batch)
        slices = {name: phi_loss[name][start:stop] for name, (start, stop) in batch.spans.items()}
        return self.loss(theta, {**phi_loss, **slices}, batch.batch)
