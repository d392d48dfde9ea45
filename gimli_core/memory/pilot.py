"""A run of two steps that holds every kind of action once, made to see what each costs."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.memory.allocator import give_back, occupied, separates
from gimli_core.memory.meters import BlockBytes, LiveBytes, Meter, Note, ResidentBytes
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

__all__ = [
    "GRADIENT",
    "PIECES",
    "PILOT",
    "RUN",
    "RUN_GRAPH",
    "RUN_KEPT",
    "SWEEP",
    "SWEEP_POINT",
    "VALIDATE",
    "Maker",
    "Piloted",
    "counted",
    "piloted",
]


class Run(Protocol):
    """What `measure` needs of an execution."""

    def forward(self) -> Iterable[Any]: ...
    def backward(self, along: Tensor | None = None) -> Iterable[Any]: ...
    @property
    def val_loss(self) -> Tensor: ...


Maker = Callable[[Inputs, Schedule], Run]

# Bytes left free in any run: Python takes its memory in pieces of one MiB, and each thread has its stack.
PIECES = 2 * 2**20

PILOT = (
    Store(0),
    Advance(0),
    Restore(0),  # step 0 leaves its loss
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
RUN, GRADIENT, RUN_KEPT, RUN_GRAPH, VALIDATE, SWEEP, SWEEP_POINT = 1, 3, 5, 6, 7, 8, 11  # where each stands in it


@dataclass(frozen=True)
class _Pilot(Schedule):
    """Two steps that hold every kind of action once; notes seconds, and what a meter saw, around each."""

    meter: Meter | None = None
    trims: bool = False  # whether holes in the heap are given back before each action
    notes: list[Note] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def actions(self, steps: int) -> Iterator[Action]:
        for action in PILOT:
            if self.trims:
                give_back()
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


class Piloted(NamedTuple):
    """What was seen of each action of the pilot."""

    tensors: list[Note]  # bytes of tensors; of a compiled run, of the process
    blocks: list[Note]  # bytes of all blocks, tensors or not
    seconds: list[float]
    occupied: int  # the most bytes that the process occupied: the mean of two runs, since it differs by a tenth
    moved: tuple[int, int]  # bytes of the generators and of the buffers that a step moves


def piloted(inputs: Inputs, run: Maker, compiled: bool) -> Piloted:
    """The pilot, run three times: with a clock, with what counts blocks, and with what counts tensors."""
    environment = inputs.environment
    snapshot = environment.capture()
    short = _short(inputs)
    timed, counted = _Pilot(), _Pilot(BlockBytes())
    # Tensors are counted, not the process: its heap need not be as in a run, where a batch could lie beside the hole
    # that one before it left.
    metered = _Pilot(ResidentBytes()) if compiled else _Pilot(LiveBytes(), trims=True)
    occupations: list[int] = []
    moved: list[tuple[int, int]] = []

    def once(pilot: _Pilot, *, watched: bool) -> None:
        with pilot.meter or nullcontext():
            torch.zeros(1).add(1)  # what a mode itself loads at its first operation
            with occupied() if watched else nullcontext(lambda: 0) as most:
                _drain(run(short, pilot))
            occupations.extend([most()] if watched else [])
        moved.append(environment.bytes_moved(snapshot))
        environment.restore(snapshot)

    with environment.trial():
        once(timed, watched=False)  # first, so that what libraries allocate once is there already, and the heap in use
        with _uncollected():  # else what earlier work left could be freed, and be counted, in the midst of it
            once(counted, watched=True)
        once(metered, watched=not compiled)
    seconds = [min(pair) for pair in zip(timed.seconds, counted.seconds, strict=True)]
    return Piloted(metered.notes, counted.notes, seconds, sum(occupations) // len(occupations), moved[0])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's collector has run, and does not run within it."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _drain(execution: Run) -> None:
    deque(execution.forward(), maxlen=0)
    deque(execution.backward(torch.ones_like(execution.val_loss)), maxlen=0)


def counted(inputs: Inputs, run: Maker) -> int:
    """Bytes that a run with one snapshot takes at its highest, by making it once; and `PIECES`."""
    meter = LiveBytes()
    with inputs.environment.trial(), meter:
        _drain(run(inputs, Checkpoint(1)))
    return meter.peak + (PIECES if separates() else 0)
