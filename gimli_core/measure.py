"""What one step of a problem costs: bytes counted at every operation, and seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from gimli_core.compiled.places import fits, outline
from gimli_core.errors import ArgumentError, explain
from gimli_core.inputs import Inputs, signature
from gimli_core.memory.actions import Action, Advance, Drop, Keep, Restore, Schedule, Store, Sweep, Tier, Validate
from gimli_core.memory.allocator import LOW, fresh_seconds, keeper, occupied, separates
from gimli_core.memory.budget import Budget, choose, estimate
from gimli_core.memory.checkpoint import Checkpoint
from gimli_core.memory.cost import Act, Costs
from gimli_core.memory.sizes import show_size
from gimli_core.record import Point
from gimli_core.storage import Storage

__all__ = ["LiveBytes", "measure", "nbytes", "settle"]


# Share of a step's working set that is left free for NOTE [heap holes]: a bound that is the same at every call, so that
# a budget which did once does again. The watch below holds it.
ROOM = 0.9
SHORT = 20  # steps; a run so short pays for measuring more than it can win by it


class Run(Protocol):
    """What `measure` needs of an execution."""

    def forward(self) -> Iterable[Any]: ...
    def backward(self) -> Iterable[Any]: ...


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made since it was entered and still live, looked at after every operation.

    What an operation allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[Any, int]] = {}
        self.peak = 0
        self.large = 0  # bytes of all tensors so far that are mapped alone where NOTE [heap holes] keeps them apart

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for t in _tensors(out):
            storage = t.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._made:
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.large += storage.nbytes() if storage.nbytes() >= LOW else 0
        self.peak = max(self.peak, self.live())
        return out

    def live(self) -> int:
        """Bytes now."""
        self._made = {key: held for key, held in self._made.items() if not held[0].expired()}
        return sum(size for _, size in self._made.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


PILOT = (
    Store(0), Advance(0, Keep.GRADIENT), Restore(0), Advance(0), Advance(1, Keep.GRAPH), Validate(2),
    Sweep(1), Restore(0), Drop(0), Sweep(0),
)  # fmt: skip


@dataclass(frozen=True)
class _Pilot(Schedule):
    """Two steps that hold every kind of action once; notes bytes and seconds around each."""

    meter: LiveBytes | None
    notes: list[tuple[int, int, int, int, float]]  # live before, peak, live after, made in large tensors, seconds

    def actions(self, steps: int) -> Iterator[Action]:
        for action in PILOT:
            before = large = peak = after = 0
            if self.meter is not None:
                before, large = self.meter.live(), self.meter.large
                self.meter.peak = before
            start = time.perf_counter()
            yield action
            seconds = time.perf_counter() - start
            if self.meter is not None:
                peak, after, large = self.meter.peak, self.meter.live(), self.meter.large - large
            self.notes.append((before, peak, after, large, seconds))


def measure(inputs: Inputs, run: Callable[[Inputs, Schedule], Run], disk: Path | None = None) -> Costs:
    """The costs of a problem with 2 or more steps to sweep, from two or three runs of two steps. Cost: 50F or 75F."""
    written, read = (0.0, 0.0) if disk is None else _disk_seconds(inputs, disk)
    environment = inputs.environment
    found = environment.capture()
    first = inputs.first
    weights = (*inputs.weights[first : first + 2], inputs.weights[-1] or 1.0)
    short = replace(inputs, steps=2, first=0, batch=lambda j: inputs.batch(0), weights=weights)
    counted: list[tuple[int, int, int, int, float]] = []
    timed: list[tuple[int, int, int, int, float]] = []
    try:
        # First, so that what libraries allocate once is there already, and the heap in use; twice for a long run.
        for _ in range(1 if inputs.steps <= SHORT else 2):
            _drain(run(short, _Pilot(None, timed)))
            environment.restore(found)
        with LiveBytes() as meter:
            torch.zeros(1).add(1)  # what the mode itself loads at its first operation
            with occupied() as most:
                _drain(run(short, _Pilot(meter, counted)))
    finally:
        environment.restore(found)
    quickest = [min(note[-1] for note in timed[i :: len(PILOT)]) for i in range(len(PILOT))]
    acts = [Act(max(peak - before, 0), t) for (before, peak, *_), t in zip(counted, quickest, strict=True)]
    live = [after for _, _, after, *_ in counted]
    fresh = fresh_seconds()
    accumulators = counted[0][0]
    point = nbytes(inputs.theta_0) + nbytes(inputs.state_0)
    at_work = live[5] - live[4] + 2 * point + max(act.transient for act in acts)
    holes = most() - max(peak for _, peak, *_ in counted)
    return Costs(
        # The point that the sweep ends at is the caller's only if it is theta_0.
        start=accumulators + (point if first else 0 if inputs.warm else nbytes(inputs.state_0)),
        point=point,
        gradient=live[2] - accumulators,
        record=live[4] - live[3],
        end=live[5] - live[4],
        run=acts[1],
        # In a run of two the heap still has room for it; later all that the step makes is mapped, and soon given back.
        run_graph=acts[4]._replace(seconds=acts[4].seconds + fresh * counted[4][3]),
        run_known=acts[3],
        validate=acts[5],
        sweep=acts[6],
        sweep_point=acts[9],
        holes=max(0, holes),
        room=round(ROOM * at_work) if separates() else 0,
        fresh=fresh,
        write=written,
        read=read,
    )


def known_costs(inputs: Inputs, run: Callable[[Inputs, Schedule], Run], disk: Path | None) -> Costs:
    """The costs of a problem with these shapes, measured when they are first asked for."""
    known: list[tuple[Any, Costs]] = inputs.problem.made.setdefault("costs", [])
    validates = [w is not None for w in (*inputs.weights[inputs.first : inputs.first + 2], inputs.weights[-1])]
    means = (inputs.second_order, inputs.first_order, inputs.warm, inputs.first > 0, validates)
    accumulators = [leaf.value for leaf in inputs.hyper.leaves]
    wanted = (signature(inputs), accumulators, means, str(disk), torch.get_num_threads())
    for like, costs in known:
        if fits(wanted, like):
            return costs
    known.append((outline(wanted), measure(inputs, run, disk)))
    return known[-1][1]


def _disk_seconds(inputs: Inputs, disk: Path) -> tuple[float, float]:
    """Seconds to write a point and to read it."""
    storage = Storage(disk)
    try:
        start = time.perf_counter()
        storage.put(Point(0, inputs.theta_0, inputs.state_0, None), Tier.DISK)
        between = time.perf_counter()
        storage.get(0)
        return between - start, time.perf_counter() - between
    finally:
        storage.close()


def _drain(execution: Run) -> None:
    deque(execution.forward(), maxlen=0)
    deque(execution.backward(), maxlen=0)


def nbytes(tree: Any) -> int:
    """Bytes of all tensors in nested dicts."""
    return sum(t.nbytes for t in _tensors(tree))


def counted(inputs: Inputs, run: Callable[[Inputs, Schedule], Run]) -> int:
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
    schedule: Schedule, inputs: Inputs, run: Callable[[Inputs, Schedule], Run]
) -> tuple[Schedule, Callable[[], None]]:
    """The schedule to run, and what to call between its actions. A budget is measured and becomes a `Checkpoint`."""
    if not isinstance(schedule, Budget):
        return schedule, lambda: None
    steps = inputs.steps - inputs.first
    if steps < 2:  # nothing to choose
        need = counted(inputs, run)
        if need > schedule.bytes:
            remedy = "With so few steps no other schedule takes less; a smaller batch does."
            came, expected = show_size(schedule.bytes), f"at least {need} bytes for {steps} steps"
            raise ArgumentError(explain(f"Budget({schedule.size!r})", expected, came, remedy))
        return Checkpoint(1), lambda: None
    keep = keeper()
    costs = known_costs(inputs, run, schedule.disk)
    chosen = choose(schedule, steps, costs)
    # What an action frees the next one takes again: given back in between, the kernel would have to clear it each time.
    # So free holes stay, until an action that finds none of them of use could come near the peak.
    transient = max(act.transient for act in (costs.run, costs.run_graph, costs.sweep, costs.sweep_point))
    most = estimate(chosen, steps, costs)[0] - transient - costs.room // 4
    return chosen, lambda: keep(most)
