"""What a schedule costs, in bytes and seconds, from the measured cost of single actions. No tensors here."""

from __future__ import annotations

from collections.abc import Iterable
from math import log2
from typing import NamedTuple

from gimli_core.memory.schedules.actions import Action, Advance, Drop, Keep, Restore, Store, Sweep, Tier, Validate

__all__ = ["ASSEMBLY", "Act", "Costs", "Prediction", "holes", "predict"]

ASSEMBLY = 4  # times their own bytes that sums of what is indexed take besides, while sparse tensors are made of them


class Act(NamedTuple):
    """One kind of action: bytes needed for a moment above what was held before it, and seconds."""

    transient: int = 0
    seconds: float = 0.0


class Costs(NamedTuple):
    """A problem's measured costs."""

    start: int  # bytes held before the first step: s_0 and the accumulators
    point: int  # (theta_j, s_j), and where it is stored the random numbers and buffers that its step meets
    step: int  # what every step leaves, whatever is kept of it: its loss
    gradient: int  # G_j
    record: int  # a point, G_j and the graph of G_j
    end: int  # bytes held from the validation on: theta_J, s_J, B, S and what L_val's gradient leaves
    run: Act  # a step forwards
    run_graph: Act  # a step forwards that keeps its graph
    run_kept: Act  # a step forwards from its kept gradient
    validate: Act
    sweep: Act  # a step backwards from its record
    sweep_point: Act  # a step backwards from its point
    holes: int  # bytes that the allocator lost between blocks over two steps
    room: int  # the most that it may lose: a budget leaves so much free
    fresh: float  # seconds a byte of memory that the process did not have
    write: float  # seconds to write a point to disk, and to read it
    read: float
    ahead: int = 0  # the most bytes that the call has occupied before its run, when it tried the losses
    once: int = 0  # of `start`: what the call has loaded for good, libraries above all
    growth: int = 0  # bytes that each step swept adds to the sums of what is indexed
    ranks: int = 1  # that share every stored point

    @property
    def stored(self) -> int:
        """Bytes that a rank keeps of a stored point."""
        return -(-self.point // self.ranks)

    @property
    def gathering(self) -> int:
        """Bytes needed for a moment to put a stored point together: what is sent, what comes, and the point."""
        return 0 if self.ranks == 1 else self.stored + 2 * self.point


class Prediction(NamedTuple):
    """A run's peak in bytes above its start, its time in seconds and its counts."""

    peak: int
    seconds: float
    replays: int
    disk: int  # bytes on disk at most


def holes(costs: Costs, worked: int) -> int:
    """Bytes that NOTE [heap holes] costs after so many actions on the heap; the growth is fitted to measured peaks."""
    return min(costs.room, round(costs.holes * min(1.6, 0.5 + 0.2 * log2(max(worked, 1)))))


def predict(actions: Iterable[Action], costs: Costs) -> Prediction:
    """Walk through a schedule's actions and add up what is held and what is spent."""
    stored: dict[int, Tier] = {}
    graphs: set[int] = set()
    gradients: set[int] = set()
    point, reached, replays, in_memory, on_disk = 0, 0, 0, 0, 0
    restored, end, peak, most_stored, most_on_disk, seconds = 0, -1, 0, 0, 0, 0.0
    swept = 0
    worked = 0  # actions on the heap; what stays of a step that keeps its graph is mapped
    for action in actions:
        act = Act()
        match action:
            case Advance(j, keep):
                if keep is Keep.GRAPH:
                    act = costs.run_graph
                    graphs.add(j)
                else:
                    act = costs.run_kept if j in gradients else costs.run
                if keep is Keep.GRADIENT:
                    gradients.add(j)
                    seconds += costs.fresh * costs.gradient
                point, replays, reached = j + 1, replays + (j < reached), max(reached, j + 1)
            case Store(j, tier):
                stored[j] = tier
                in_memory, on_disk = in_memory + (tier is Tier.MEMORY), on_disk + (tier is Tier.DISK)
                seconds += costs.write if tier is Tier.DISK else 0.0
            case Restore(j):
                point = restored = j
                seconds += costs.read if stored[j] is Tier.DISK else 0.0
                act = Act(costs.gathering if j > 0 else 0)
            case Drop(j):
                tier = stored.pop(j)
                in_memory, on_disk = in_memory - (tier is Tier.MEMORY), on_disk - (tier is Tier.DISK)
            case Validate():
                act = costs.validate
            case Sweep(j):
                act = costs.sweep if j in graphs else costs.sweep_point
        keeps_graph = isinstance(action, Advance) and action.keep is Keep.GRAPH
        worked += isinstance(action, (Advance, Validate, Sweep)) and not keeps_graph
        # theta_0 is the caller's and s_0 in `start`; a working point whose step has a record is counted there.
        counted = point in (0, end) or point in graphs or (point in stored and restored == point and costs.ranks == 1)
        used = costs.start + costs.stored * (in_memory - (0 in stored)) + costs.point * (not counted)
        used += costs.gradient * len(gradients) + costs.growth * swept + costs.step * reached
        used += costs.record * (len(graphs) - keeps_graph) + (costs.end if end >= 0 else 0)
        peak = max(peak, used + act.transient + holes(costs, worked))
        most_stored, most_on_disk = max(most_stored, in_memory), max(most_on_disk, on_disk)
        seconds += act.seconds
        if isinstance(action, Validate):
            end = action.j
        if isinstance(action, Sweep):
            swept += 1
            graphs.discard(action.j)
            gradients.discard(action.j)
    peak = max(peak, costs.start + (costs.end if end >= 0 else 0) + (1 + ASSEMBLY) * costs.growth * swept)
    seconds += costs.fresh * costs.stored * max(0, most_stored - 1)
    return Prediction(peak, seconds, replays, most_on_disk * costs.stored)
