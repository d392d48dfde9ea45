"""Line 5 as written: keep the graph of every G_j."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gimli_core.memory.schedules.actions import Action, Advance, Keep, Schedule, Sweep, Validate

__all__ = ["RetainGraphs"]


@dataclass(frozen=True)
class RetainGraphs(Schedule):
    """Keep every step's graph from the forward unroll to the backward sweep; nothing is run twice.

    Args:
        compact: map what is kept apart from the heap (NOTE [heap holes] in allocator.py): the least memory, but for
            large tensors more time. A call without `memory=` does without, and leaves its memory to the next one.

    Cost: time 9F a step, the floor of exact differentiation; memory J times (theta, s, and the
    activations of a gradient).
    """

    replays = False
    compact: bool = field(default=True, repr=False, kw_only=True)

    def actions(self, steps: int) -> Iterator[Action]:
        for j in range(steps):
            yield Advance(j, Keep.GRAPH)
        yield Validate(steps)
        for j in reversed(range(steps)):
            yield Sweep(j)
