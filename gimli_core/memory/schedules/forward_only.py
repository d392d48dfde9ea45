"""Lines 4-9 alone, for whoever never goes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gimli_core.memory.schedules.actions import Action, Advance, Schedule, Validate

__all__ = ["ForwardOnly"]


@dataclass(frozen=True)
class ForwardOnly(Schedule):
    """Run every step once and keep nothing of it.

    Cost: time 3F a step; memory of one step.
    """

    replays = False

    def actions(self, steps: int) -> Iterator[Action]:
        for j in range(steps):
            yield Advance(j)
        yield Validate(steps)
