"""What ranks measure for themselves, made one: a schedule that one of them chose otherwise would wait for ever."""

from __future__ import annotations

from typing import Any

from gimli_core.memory.schedules.costs import Act, Costs
from gimli_core.processes.collectives import everyones
from gimli_core.processes.mesh import Mesh

__all__ = ["agreed_bytes", "agreed_costs"]


def agreed_bytes(mesh: Mesh | None, count: int) -> int:
    """The most that any rank needs."""
    for ranks in mesh or ():
        count = max(everyones(ranks, count, "bytes of a run"))
    return count


def agreed_costs(mesh: Mesh | None, costs: Costs) -> Costs:
    """The highest of every cost on any rank: the schedule that is chosen by them fits all, and is one."""
    for ranks in mesh or ():
        every = [Costs(*each) for each in everyones(ranks, tuple(costs), "costs of a step")]
        costs = Costs(**{name: _highest([getattr(each, name) for each in every]) for name in Costs._fields})
    return costs


def _highest(values: list[Any]) -> Any:
    """The highest number, or of each number of an `Act`."""
    return Act(*map(max, zip(*values, strict=True))) if isinstance(values[0], Act) else max(values)
