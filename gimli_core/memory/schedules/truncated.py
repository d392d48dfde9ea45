"""A schedule for the last steps alone."""

from __future__ import annotations

from collections.abc import Iterator

from gimli_core.memory.schedules.actions import Action, Advance, Schedule

__all__ = ["truncated"]


def truncated(schedule: Schedule, steps: int, first: int) -> Iterator[Action]:
    """Run steps 0 … first - 1 and keep nothing of them; then the schedule's own actions for the other steps.

    >>> import gimli_core as gimli
    >>> [type(a).__name__ + str(a.j) for a in truncated(gimli.memory.RetainGraphs(), steps=3, first=2)]
    ['Advance0', 'Advance1', 'Advance2', 'Validate3', 'Sweep2']
    """
    if not first:
        yield from schedule.actions(steps)
        return
    yield from map(Advance, range(first))
    for action in schedule.actions(steps - first):
        yield action._replace(j=action.j + first)
