"""A run of two steps that holds every kind of action once, made to see what each costs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.memory.allocator import occupied
from gimli_core.memory.meters import LiveBytes, Meter, Note, ResidentBytes
from gimli_core.memory.schedules.actions import (
    Action,
    Advance,
    Drop,
    Keep,
    Restore,
    Schedule,
    Store,
    Sweep,
    Validate,
)
from gimli_core.memory.schedules.checkpoint import Checkpoint

__all__ = ["PILOT", "RUN", "RUN_GRAPH", "RUN_KEPT", "SWEEP", "SWEEP_POINT", "VALIDATE", "Maker", "counted", "piloted"]

SHORT = 20  # steps; a run so short pays for measuring more than it can win by it


class Run(Protocol):
    """What `measure` needs of an execution."""

    def forward(self) -> Iterable[Any]: ...
    def backward(self, along: Tensor | None = None) -> Iterable[Any]: ...
    @property
    def val_loss(self) -> Tensor: ...


Maker = Callable[[Inputs, Schedule], Run]

PILOT = (
    Store(0),
    Advance(0, Keep.GRADIENT),
    Restore(0),
    Advance(0),
    Advance(1, Keep.GRAPH),
    Validate(2),
    Sweep(1),
    Restore(0),
    Drop(0),
    Sweep(0),
)
RUN, RUN_KEPT, RUN_GRAPH, VALIDATE, SWEEP, SWEEP_POINT = 1, 3, 4, 5, 6, 9  # where each stands in it


@dataclass(frozen=True)
class _Pilot(Schedule):
    """Two steps that hold every kind of action once; notes seconds, and what a meter saw, around each."""

    meter: Meter | None = None
    notes: list[Note] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def actions(self, steps: int) -> Iterator[Action]:
        for action in PILOT:
            if self.meter is not None:
                self.meter.begin()
            start = time.perf_counter()
            yield action
            self.seconds.append(time.perf_counter() - start)
            if self.meter is not None:
                self.notes.append(self.meter.end())


def _short(inputs: Inputs) -> Inputs:
    """Two steps of a problem, with a weight at each where the run has some."""
    form, values = inputs.form, inputs.values
    weights = (*values.weights[form.first : form.first + 2], values.weights[-1] or 1.0)
    return replace(
        inputs,
        form=replace(
            form, steps=2, weighted=tuple(w is not None for w in weights), left_out=form.left_out.untruncated()
        ),
        values=replace(values, batch=lambda j: values.batch(0), weights=weights),
    )


def piloted(inputs: Inputs, run: Maker, compiled: bool) -> tuple[list[Note], list[float], int]:
    """For each action of the pilot what a meter saw and the seconds; and the most bytes that the process occupied.

    The last is the mean of two runs, if there are two: it differs by a tenth from run to run.
    """
    environment = inputs.environment
    snapshot = environment.capture()
    short = _short(inputs)
    timed, metered = _Pilot(), _Pilot(ResidentBytes() if compiled else LiveBytes())
    occupations = []

    def once(pilot: _Pilot, *, watched: bool) -> None:
        with pilot.meter or nullcontext():
            torch.zeros(1).add(1)  # what a mode itself loads at its first operation
            with occupied() if watched else nullcontext(lambda: 0) as most:
                _drain(run(short, pilot))
            occupations.extend([most()] if watched else [])
        environment.restore(snapshot)

    try:
        once(timed, watched=False)  # first, so that what libraries allocate once is there already, and the heap in use
        if compiled or inputs.form.steps > SHORT:
            once(timed, watched=True)
        once(metered, watched=not compiled)
    finally:
        environment.restore(snapshot)
    quickest = [min(timed.seconds[i :: len(PILOT)]) for i in range(len(PILOT))]
    return metered.notes, quickest, sum(occupations) // len(occupations)


def _drain(execution: Run) -> None:
    deque(execution.forward(), maxlen=0)
    deque(execution.backward(torch.ones_like(execution.val_loss)), maxlen=0)


def counted(inputs: Inputs, run: Maker) -> int:
    """Bytes that a run with one snapshot takes at its highest, by making it once."""
    meter = LiveBytes()
    snapshot = inputs.environment.capture()
    try:
        with meter:
            _drain(run(inputs, Checkpoint(1)))
    finally:
        inputs.environment.restore(snapshot)
    return meter.peak
