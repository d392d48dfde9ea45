"""What one step of a problem costs: bytes counted at every operation, and seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_losses
from gimli_core.errors import ArgumentError, explain
from gimli_core.memory.allocator import fresh_seconds, keeper, occupied, separates, warm
from gimli_core.memory.batch_sizes import no_larger_batches
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
    Tier,
    Validate,
)
from gimli_core.memory.schedules.budget import Budget, choose, estimate
from gimli_core.memory.schedules.checkpoint import Checkpoint
from gimli_core.memory.schedules.costs import Act, Costs, predict
from gimli_core.memory.schedules.sizes import show_size
from gimli_core.memory.storage import Storage
from gimli_core.record import Point
from gimli_core.trees import fits, nbytes, outline

__all__ = ["Maker", "known_costs", "measure", "settle"]


# Share of a step's working set that is left free for NOTE [heap holes]: a bound that is the same at every call, so that
# a budget which did once does again. The watch below holds it. What is compiled makes fewer tensors.
ROOM, ROOM_COMPILED = 0.9, 0.45
# Share of a compiled action's bytes that the heap loses at least: a pilot of two steps hardly loses any yet.
LOST = 0.1
SHORT = 20  # steps; a run so short pays for measuring more than it can win by it


class Run(Protocol):
    """What `measure` needs of an execution."""

    def forward(self) -> Iterable[Any]: ...
    def backward(self, along: Tensor | None = None) -> Iterable[Any]: ...
    @property
    def val_loss(self) -> Tensor: ...


Maker = Callable[[Inputs, Schedule], Run]

PILOT = (
    Store(0), Advance(0, Keep.GRADIENT), Restore(0), Advance(0), Advance(1, Keep.GRAPH), Validate(2),
    Sweep(1), Restore(0), Drop(0), Sweep(0),
)  # fmt: skip
RUN, RUN_KNOWN, RUN_GRAPH, VALIDATE, SWEEP, SWEEP_POINT = 1, 3, 4, 5, 6, 9  # where each stands in it


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


def measure(
    inputs: Inputs, run: Maker, disk: Path | None = None, *, compiled: bool = False, weighed: bool = False
) -> Costs:
    """The costs of a problem with 2 or more steps to sweep, from two or three runs of two steps.

    `compiled`: whether `run` makes its tensors unseen, so that the process is looked at as a whole. `weighed`: whether
    it sweeps several outer losses as one.

    Cost: 50F, or 75F for a long run or a compiled one.
    """
    written, read = (0.0, 0.0) if disk is None else _disk_seconds(inputs, disk)
    notes, seconds, most = _piloted(inputs, run, compiled)
    acts = [Act(max(note.peak - note.before, 0), t) for note, t in zip(notes, seconds, strict=True)]
    theta, state = nbytes(inputs.values.theta_0), nbytes(inputs.values.state_0)
    point = theta + state
    fresh, large = fresh_seconds(), notes[RUN_GRAPH].large
    if compiled:  # all that stays are the tensors of the algorithm itself, and whatever is kept, a step does the same
        phi_loss = sum(max(v.nbytes, 4 * v.numel()) for v in inputs.values.phi_loss.values())  # in float32 at least
        several = outer_losses(inputs)
        rows = 1 if weighed or several is None else several
        accumulators = rows * (nbytes(inputs.values.hyper.zeros()) + phi_loss)
        kept = any(w is not None for w in inputs.values.weights[inputs.form.first : -1])
        validation = rows * (theta + phi_loss) if kept and not (weighed and several is not None) else 0
        gradient, record, end = theta, point + theta + validation, (1 + rows) * point
        large = record
        for alike in ((RUN, RUN_KNOWN, RUN_GRAPH), (SWEEP, SWEEP_POINT)):
            act = Act(max(acts[i].transient for i in alike), min(acts[i].seconds for i in alike))
            acts = [act if i in alike else other for i, other in enumerate(acts)]
    else:
        accumulators, live = notes[0].before, [note.after for note in notes]
        gradient = live[RUN_KNOWN - 1] - accumulators
        record = live[RUN_GRAPH] - live[RUN_KNOWN]
        end = live[VALIDATE] - live[RUN_GRAPH] + point
    transient = max(act.transient for act in acts)
    costs = Costs(
        start=accumulators,
        point=point,
        gradient=gradient,
        record=record,
        end=end,
        run=acts[RUN],
        # In a run of two the heap still has room for it; later all that the step makes is mapped, and soon given back.
        run_graph=acts[RUN_GRAPH]._replace(seconds=acts[RUN_GRAPH].seconds + fresh * large),
        run_known=acts[RUN_KNOWN],
        validate=acts[VALIDATE],
        sweep=acts[SWEEP],
        sweep_point=acts[SWEEP_POINT],
        holes=0,
        room=round((ROOM_COMPILED if compiled else ROOM) * (end + point + transient)) if separates() else 0,
        fresh=fresh,
        write=written,
        read=read,
    )
    holes = max(round(LOST * transient) if compiled else 0, most - predict(PILOT, costs).peak)
    # s_0 was there before the pilot; the point that the sweep ends at is the caller's only if it is theta_0.
    own = point if inputs.form.first else 0 if inputs.form.warm else state
    return costs._replace(holes=holes, start=accumulators + own)


def _short(inputs: Inputs) -> Inputs:
    """Two steps of a problem, with a weight at each where the run has some."""
    form, values = inputs.form, inputs.values
    weights = (*values.weights[form.first : form.first + 2], values.weights[-1] or 1.0)
    return replace(
        inputs,
        form=replace(form, steps=2, weighted=tuple(w is not None for w in weights), left_out=form.left_out.whole()),
        values=replace(values, batch=lambda j: values.batch(0), weights=weights),
    )


def _piloted(inputs: Inputs, run: Maker, compiled: bool) -> tuple[list[Note], list[float], int]:
    """For each action of the pilot what a meter saw and the seconds; and the most bytes that the process occupied.

    The last is the mean of two runs, if there are two: it differs by a tenth from run to run.
    """
    environment = inputs.environment
    found = environment.capture()
    short = _short(inputs)
    timed, metered = _Pilot(), _Pilot(ResidentBytes() if compiled else LiveBytes())
    occupations = []

    def once(pilot: _Pilot, *, watched: bool) -> None:
        with pilot.meter or nullcontext():
            torch.zeros(1).add(1)  # what a mode itself loads at its first operation
            with occupied() if watched else nullcontext(lambda: 0) as most:
                _drain(run(short, pilot))
            occupations.extend([most()] if watched else [])
        environment.restore(found)

    try:
        once(timed, watched=False)  # first, so that what libraries allocate once is there already, and the heap in use
        if compiled or inputs.form.steps > SHORT:
            once(timed, watched=True)
        once(metered, watched=not compiled)
    finally:
        environment.restore(found)
    quickest = [min(timed.seconds[i :: len(PILOT)]) for i in range(len(PILOT))]
    return metered.notes, quickest, sum(occupations) // len(occupations)


def known_costs(
    inputs: Inputs, eager: Maker, compiled: Maker | None = None, disk: Path | None = None, *, weighed: bool = False
) -> Costs:
    """The costs of a problem with these shapes, measured when they are first asked for: those of compiled steps where
    they can be seen, and else of eager ones. `weighed`: whether several outer losses are swept as one.
    """
    form, values = inputs.form, inputs.values
    seen = compiled is not None and separates() and inputs.device.type == "cpu"
    known: list[tuple[Any, Costs]] = form.problem.memo.costs
    weighted = [*form.weighted[form.first : form.first + 2], form.weighted[-1]]
    means = (form.second_order, form.curvature, form.warm, form.first > 0, weighted, seen, weighed)
    accumulators = [leaf.value for leaf in values.hyper.leaves]
    wanted = (inputs.signature(), accumulators, means, str(disk), torch.get_num_threads())
    for like, costs in known:
        if fits(wanted, like):
            return costs
    costs = measure(inputs, compiled if seen and compiled is not None else eager, disk, compiled=seen, weighed=weighed)
    known.append((outline(wanted), costs))
    return costs


def _disk_seconds(inputs: Inputs, disk: Path) -> tuple[float, float]:
    """Seconds to write a point and to read it."""
    storage = Storage(disk)
    try:
        start = time.perf_counter()
        storage.put(Point(0, inputs.values.theta_0, inputs.values.state_0, None), Tier.DISK)
        between = time.perf_counter()
        storage.get(0)
        return between - start, time.perf_counter() - between
    finally:
        storage.close()


def _drain(execution: Run) -> None:
    deque(execution.forward(), maxlen=0)
    deque(execution.backward(torch.ones_like(execution.val_loss)), maxlen=0)


def counted(inputs: Inputs, run: Maker) -> int:
    """Bytes that a run with one snapshot takes at its highest, by making it once."""
    meter = LiveBytes()
    found = inputs.environment.capture()
    try:
        with meter:
            _drain(run(inputs, Checkpoint(1)))
    finally:
        inputs.environment.restore(found)
    return meter.peak


def settle(
    schedule: Schedule, inputs: Inputs, eager: Maker, compiled: Maker | None, *, weighed: bool = False
) -> tuple[Schedule, Inputs, Callable[[], None]]:
    """The schedule to run, inputs whose batches are held to the measured one, and what to call between its actions.

    A budget is measured and becomes a `Checkpoint`.

    How a budget predicts. A pilot of two steps holds every kind of action once; around each a meter notes the bytes
    that it leaves behind and needs for a moment, and a clock its seconds. From these `budget.estimate` tells the peak
    and the time of any schedule in closed form, without running it, and `budget.choose` takes the quickest that fits.
    What glibc loses between blocks is measured on the process and predicted to grow (`costs.holes`); the watch that is
    called between actions gives free holes back before a peak could pass the bound.

    `eager` and `compiled` make a run of a schedule by steps of either kind; `weighed` as in `known_costs`.
    """
    if not isinstance(schedule, Budget):
        return schedule, inputs, lambda: None
    steps = inputs.form.steps - inputs.form.first
    if steps < 2:  # nothing to choose
        need = counted(inputs, eager)
        if need > schedule.bytes:
            remedy = "With so few steps no other schedule takes less; a smaller batch does."
            came, expected = show_size(schedule.bytes), f"at least {need} bytes for {steps} steps"
            raise ArgumentError(explain(f"Budget({schedule.size!r})", expected, came, remedy))
        return Checkpoint(1), inputs, lambda: None
    warm()
    keep = keeper()
    costs = known_costs(inputs, eager, compiled, schedule.disk, weighed=weighed)
    chosen = choose(schedule, steps, costs)
    # What an action frees the next one takes again: given back in between, the kernel would have to clear it each time.
    # So free holes stay, until an action that finds none of them of use, and leaves holes of its own in a third of the
    # room, could come near the peak.
    acts = (costs.run, costs.run_graph, costs.run_known, costs.validate, costs.sweep, costs.sweep_point)
    transient = max(act.transient for act in acts)
    most = estimate(chosen, steps, costs)[0] - transient - costs.room // 3
    return chosen, no_larger_batches(schedule, inputs), lambda: keep(most)
