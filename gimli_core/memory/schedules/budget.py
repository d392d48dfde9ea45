"""The fastest schedule whose peak fits a number of bytes.

How a budget predicts. `measure.py` runs two steps and gives the bytes and seconds of each kind of action (`Costs`).
A mix of stored points, blocks of kept graphs and kept gradients is told by four numbers, and from those and the costs
`estimate` has its time and a bound of its peak in closed form: stored points and kept gradients, and above them the
highest of the moments at which a run can stand. So `choose` can go through thousands of mixes, and takes the fastest
that fits. `costs.predict` walks through every action instead; the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gimli_core.errors import ArgumentError, explain, unexpected
from gimli_core.memory.directory import directory_of
from gimli_core.memory.schedules.actions import Action, Schedule
from gimli_core.memory.schedules.binomial import advances
from gimli_core.memory.schedules.checkpoint import Checkpoint
from gimli_core.memory.schedules.costs import ASSEMBLY, Costs
from gimli_core.memory.schedules.sizes import parse_size, show_size

__all__ = ["AHEAD", "Budget", "choose", "enough", "estimate", "least"]


@dataclass(frozen=True)
class Budget(Schedule):
    """Keep the run's memory within `size`, and be as fast as that allows.

    One step is measured first (about 85F, once for a problem and its shapes); then graphs of the last steps, states,
    gradients and replays are mixed so that the predicted time is least among all mixes whose peak fits. Measured is
    the first batch; a later one whose tensors are larger in any dimension is refused before its step runs.

    What counts on a processor is what the process occupies, as the system tells it. So the nodes of a graph and
    Python's objects count, some 40 KB a kept step, which are more than all the tensors of a network of a few hundred
    numbers; and so do the libraries that the first run of a process loads: about 15 MiB of torch's code, 35 more for
    means of second order, and losses, that use `torch.func`. A process that has run the like before has them.

    What comes before the run counts too: the losses are tried on copies of theta and of a batch, two of a batch at a
    time, so a budget has room for these, or it is refused, or `check=False`. (`gimli.plan` tells of the run alone.)

    Args:
        size: bytes above what the process holds when the call comes: a number, "512MiB", "2GB".
        disk: a directory for states that do not fit; for tensors on a GPU one that lives in memory (/dev/shm) will do.

    Raises:
        ArgumentError: a size that cannot be read; at the run, one that is too small, with the least that would do; a
            batch larger than the first, before its step.

    Cost: the peak is at most `size`; time falls as it grows, from Checkpoint(1)'s to that of keeping every state, or
    every graph where clearing fresh memory costs less than computing G_j again.

    >>> import gimli_core as gimli
    >>> gimli.memory.Budget("512MiB").bytes
    536870912
    """

    size: str | int
    disk: Path | None = None
    bytes: int = field(init=False, repr=False)
    before: int | None = field(init=False, default=None, repr=False, compare=False)
    ahead: int = field(init=False, default=0, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes", parse_size(self.size))
        if self.disk is not None:
            object.__setattr__(self, "disk", directory_of("Budget(disk=…)", self.disk))

    def of_call(self, before: int, ahead: int = 0) -> Budget:
        """The same, of a call that came when the process occupied `before` bytes, and has since occupied up to `ahead`
        more.
        """
        budget = Budget(self.size, self.disk)
        object.__setattr__(budget, "before", before)
        object.__setattr__(budget, "ahead", ahead)
        return budget

    def actions(self, steps: int) -> Iterator[Action]:
        raise unexpected(
            "Budget", "a problem to measure", "none", "gimli.plan(problem, …) shows what a budget becomes."
        )


# What to do about memory that is taken before a run.
AHEAD = "smaller batches, or micro_batches=, take less, and check=False tries nothing"


def estimate(schedule: Checkpoint, steps: int, costs: Costs) -> tuple[int, float]:
    """(peak in bytes, seconds) of a schedule in closed form. An upper bound of the peak; cost O(1) in steps."""
    on_disk = 0
    if schedule.disk is not None:
        on_disk = max(0, steps - schedule.snapshots) if schedule.disk_snapshots is None else schedule.disk_snapshots
    block = min(schedule.graphs, steps)
    plain = advances(steps, schedule.snapshots + on_disk, block)
    blocks = -(-steps // block)
    first, again = steps - block, plain - (steps - block)
    seconds = first * costs.run.seconds + again * (costs.run_kept if schedule.gradients else costs.run).seconds
    # The first block's steps all run with their graphs; of every other block, the last is swept from its point.
    seconds += (steps - blocks + 1) * (costs.run_graph.seconds + costs.sweep.seconds) + (
        blocks - 1
    ) * costs.sweep_point.seconds
    seconds += costs.validate.seconds + min(on_disk, max(0, blocks - schedule.snapshots)) * (costs.write + costs.read)
    kept = min(schedule.snapshots, blocks) - 1  # theta_0 is the caller's
    fresh = kept * costs.stored + (first * costs.gradient if schedule.gradients else 0)
    seconds += costs.fresh * fresh
    sums = steps * costs.growth
    at_work = max(fresh + highest(block, blocks, costs), costs.end + ASSEMBLY * sums)
    return costs.start + costs.step * steps + sums + at_work + costs.room, seconds


def highest(block: int, blocks: int, costs: Costs) -> int:
    """The most bytes at work in any part of a run, above `start`, stored points and kept gradients."""
    point, graphs = costs.point, (block - 1) * costs.record  # the latter while the last step of a block is at work
    forwards = max(costs.run.transient, costs.run_kept.transient)
    moments = [
        point + graphs + costs.run_graph.transient,
        point + graphs + costs.record + costs.validate.transient,
        costs.end + graphs + costs.record + costs.sweep.transient,
    ]
    if blocks > 1:  # again, once the last block is swept
        moments += [point + costs.end + forwards, point + costs.end + graphs + costs.sweep_point.transient]
        moments += [point + costs.end + costs.gathering]
        if block > 1:
            last = max(costs.run_graph.transient - costs.record, costs.sweep.transient)
            moments += [point + costs.end + graphs + last]
    return max(moments)


def least(steps: int, costs: Costs) -> int:
    """The smallest budget that does."""
    return max(estimate(Checkpoint(1), steps, costs)[0], costs.ahead)


def choose(budget: Budget, steps: int, costs: Costs) -> Checkpoint:
    """The schedule with the least estimated time among those whose peak fits. Raises ArgumentError."""
    feasible: list[tuple[float, int, Checkpoint]] = []
    for block in numbers(steps):
        for gradients in (False, True):
            room = budget.bytes - estimate(Checkpoint(1, graphs=block, gradients=gradients), steps, costs)[0]
            if room < 0 or costs.ahead > budget.bytes:
                continue
            slots = 1 + min(room // max(costs.stored, 1), steps)
            for on_disk in (0, *numbers(steps)) if budget.disk else (0,):
                schedule = Checkpoint(
                    slots,
                    budget.disk if on_disk else None,
                    disk_snapshots=on_disk or None,
                    graphs=block,
                    gradients=gradients,
                )
                feasible.append((estimate(schedule, steps, costs)[1], len(feasible), schedule))
    if not feasible:
        raise ArgumentError(too_small(budget, steps, costs))
    return min(feasible)[2]


def numbers(most: int) -> list[int]:
    """1 … most; beyond 64 each about 5 % above the last."""
    rising, n = [], 1
    while n < most:
        rising.append(n)
        n = max(n + 1, n + n // 20)
    return [*rising, most]


def too_small(budget: Budget, steps: int, costs: Costs) -> str:
    """What a budget that no schedule fits into would have to be, a line for each way to run."""
    lines = []
    for name, schedule in (
        ("1 snapshot", Checkpoint(1)),
        ("10 snapshots", Checkpoint(min(10, steps))),
        ("all states", Checkpoint(steps)),
        ("all graphs", Checkpoint(1, graphs=steps)),
    ):
        peak, seconds = estimate(schedule, steps, costs)
        lines.append(f"{enough(max(peak, costs.ahead))} ({name}) takes about {seconds:.3g} s")
    if costs.ahead > budget.bytes:
        what = "by the losses that are tried on copies, by what is compiled or run ahead"
        lines.append(f"{enough(costs.ahead)} are taken before the run, {what}: {AHEAD}")
    if costs.once:
        lines.append(f"{show_size(costs.once)} of each are libraries that this call was the first to load")
    return explain(
        f"Budget({budget.size!r})",
        f"at least {enough(least(steps, costs))} for {steps} steps",
        show_size(budget.bytes),
        "; ".join(lines) + ".",
    )


def enough(size: float) -> str:
    """A size to pass as a budget where so much is needed: 1 % more, since digits are left out, and another process
    takes a little more or less.
    """
    return show_size(size * 1.01)
