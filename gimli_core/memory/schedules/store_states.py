"""Keep the state of every step, and compute each gradient again when it is swept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gimli_core.memory.schedules.actions import Action, Advance, Drop, Keep, Restore, Schedule, Store, Sweep, Validate

__all__ = ["StoreStates"]


@dataclass(frozen=True)
class StoreStates(Schedule):
    """Keep theta_j and s_j of every step; the sweep computes G_j again from them.

    The last step keeps its graph, since it is swept at once.

    Cost: time 12F a step; memory J times (theta, s) and one step's graph.
    """

    def actions(self, steps: int) -> Iterator[Action]:
        for j in range(steps):
            last = j == steps - 1
            if not last:
                yield Store(j)
            yield Advance(j, Keep.GRAPH if last else Keep.NOTHING)
        yield Validate(steps)
        for j in reversed(range(steps)):
            if j < steps - 1:
                yield Restore(j)
                yield Drop(j)
            yield Sweep(j)
