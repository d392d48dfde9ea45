"""The inputs of a call whose theta is over ranks: begun once all ranks could begin, and with the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gimli_core.arguments.call import Call
from gimli_core.arguments.in_shards import in_shards, random_numbers
from gimli_core.arguments.inputs import Inputs
from gimli_core.processes.agreement import together
from gimli_core.processes.mesh import Mesh, Ranks
from gimli_core.runs.digests import digests

__all__ = ["sharded"]


def sharded(call: Call, mesh: Mesh, ranks: Ranks, make: Callable[[], Inputs]) -> Inputs:
    """The inputs that `make` makes, as those of this rank. Raises on all ranks, or on none."""
    made: list[Inputs] = []

    def checked() -> Inputs:
        made.append(make())
        return made[0]

    def alike() -> dict[str, str]:
        return {**digests(call, batches=True), "random numbers": random_numbers(made[0])}

    inputs = together([ranks], "mesh", checked, alike)
    return in_shards(replace(inputs, form=replace(inputs.form, mesh=mesh)), ranks)
