"""A budget made into the schedule that keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import ArgumentError, unexpected
from gimli_core.memory.agreed import agreed_bytes
from gimli_core.memory.allocator import footprint, keeper
from gimli_core.memory.batch_sizes import no_larger_batches
from gimli_core.memory.before_a_run import taken_ahead
from gimli_core.memory.measure import costs_of
from gimli_core.memory.pilot import PIECES, Maker, counted
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.memory.schedules.budget import AHEAD, Budget, choose, estimate
from gimli_core.memory.schedules.checkpoint import Checkpoint
from gimli_core.memory.schedules.retain_graphs import RetainGraphs
from gimli_core.memory.schedules.sizes import parse_size, show_size

__all__ = ["begun", "schedule_of_call", "settle"]


def begun(schedule: Schedule | None) -> Schedule | None:
    """The schedule of a call that comes now: a budget counts from what the process occupies at this moment."""
    fresh = isinstance(schedule, Budget) and schedule.before is None
    return schedule.of_call(footprint()) if fresh and isinstance(schedule, Budget) else schedule


def _loaded(budget: Budget, inputs: Inputs) -> int:
    """Bytes that the process occupies for good since the call came: what the checks and the pilot, which do all that a
    run does, have loaded and remembered. Of a processor alone: elsewhere a budget is the device's.

    Half of the bytes that any run leaves free are for what a call moves in a process that has run the like before, so
    that a budget which `plan` found to do does.
    """
    if budget.before is None or inputs.device.type != "cpu":
        return 0
    loaded = footprint() - budget.before
    return agreed_bytes(inputs.form.mesh, loaded if loaded > PIECES // 2 else 0)


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

    `eager` and `compiled` make a run of a schedule by steps of either kind; `weighed` as in `costs_of`.
    """
    if not isinstance(schedule, Budget):
        return schedule, inputs, lambda: None
    steps = inputs.form.steps - inputs.form.first
    ahead = agreed_bytes(inputs.form.mesh, taken_ahead(schedule))
    if steps < 2:  # nothing to choose
        alone = agreed_bytes(inputs.form.mesh, counted(inputs, eager)) + _loaded(schedule, inputs)
        need = max(alone, ahead)
        if need > schedule.bytes:
            remedy = "With so few steps no other schedule takes less; a smaller batch does."
            if ahead > alone:
                remedy = f"So much is taken before the run, by the losses that are tried on copies: {AHEAD}."
            actual, expected = show_size(schedule.bytes), f"at least {need} bytes for {steps} steps"
            raise unexpected(f"Budget({schedule.size!r})", expected, actual, remedy)
        return Checkpoint(1), inputs, lambda: None
    costs = costs_of(inputs, eager, compiled, schedule.disk, weighed=weighed)
    once = _loaded(schedule, inputs)
    keep = keeper()
    chosen = choose(schedule, steps, costs._replace(start=costs.start + once, once=once, ahead=ahead))
    # What an action frees the next one takes again: given back in between, the kernel would have to clear it each time.
    # So free holes stay, until an action that finds none of them of use, and leaves holes of its own in a third of the
    # room, could come near the peak.
    acts = (costs.run, costs.run_graph, costs.run_kept, costs.validate, costs.sweep, costs.sweep_point)
    transient = max(act.transient for act in acts)
    most = estimate(chosen, steps, costs)[0] - transient - costs.room // 3
    return chosen, no_larger_batches(schedule, inputs), lambda: keep(most)


def schedule_of_call(call: Call) -> Schedule:
    """The schedule to run; by default `RetainGraphs`, for speed."""
    memory = call.memory
    if memory is None:
        return RetainGraphs(compact=False)
    if not isinstance(memory, Schedule):
        raise unexpected("memory", "a schedule of gimli.memory", repr(memory), _meant(memory))
    return memory


def _meant(memory: Any) -> str:
    """What to give in the place of what is no schedule."""
    if isinstance(memory, type):
        return "Call it: memory=gimli.memory.StoreStates()."
    try:
        parse_size(memory)
    except ArgumentError:
        return "For example gimli.memory.StoreStates()."
    return f"A size is a budget's: memory=gimli.memory.Budget({memory!r})."
