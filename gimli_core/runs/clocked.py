"""A run whose eager time counts, for `compile="auto"`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gimli_core.compiled.in_time import clocked
from gimli_core.runs.run import Events
from gimli_core.runs.scheduled_run import ScheduledRun

__all__ = ["Clocked"]


class Clocked:
    """A run whose eager time counts: its two halves, not what the user does between them."""

    def __init__(self, run: ScheduledRun, *, watched: bool) -> None:
        self._run, self._watched = run, watched
        self._patience = run.form.problem.memo.patience

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def forward(self) -> Events:
        yield from clocked(self._patience, self._run.forward(), watched=self._watched)

    def backward(self, along: Tensor | None = None) -> Events:
        yield from clocked(self._patience, self._run.backward(along), watched=self._watched)
