"""How ranks that hold parts of one run come to one place in their journals."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gimli_core.errors import unexpected
from gimli_core.processes.agreement import together
from gimli_core.processes.collectives import everyones
from gimli_core.processes.mesh import Ranks

__all__ = ["NEXT", "Reached", "any_of", "common", "first_of", "of_rank"]

NEXT = "progress-next"  # what `progress` is to be, once all ranks have theirs
RANK = re.compile(r"(?:(?:data|shard)-\d+-of-\d+-?)+")

Reached = tuple[dict[str, Any], dict[str, Any]]  # tensors and plain values


def of_rank(directory: Path, mesh: Sequence[Ranks]) -> Path:
    """The directory of this rank in that of the run. Raises ArgumentError where another number of ranks began it."""
    if not mesh:
        return directory
    name = "-".join(f"{ranks.use}-{ranks.rank}-of-{ranks.size}" for ranks in mesh)
    sizes = "-".join(f"{ranks.use}-of-{ranks.size}" for ranks in mesh)
    there = [path.name for path in directory.iterdir() if RANK.fullmatch(path.name)] if directory.is_dir() else []
    begun = {re.sub(r"-\d+-of", "-of", path) for path in there}
    if begun - {sizes}:
        actual, do = (
            f"{directory}, where {', '.join(sorted(begun))} began",
            "Start as many ranks, or begin anew.",
        )
        raise unexpected("resume", "a directory of this number of ranks, whose batches are cut alike", actual, do)
    return directory / name


def first_of(mesh: Sequence[Ranks], value: Any) -> Any:
    """The first rank's value."""
    for ranks in mesh:
        value = everyones(ranks, value, "resume")[0]
    return value


def any_of(mesh: Sequence[Ranks], holds: bool) -> bool:
    """Whether something holds on some rank."""
    for ranks in mesh:
        holds = any(everyones(ranks, holds, "resume"))
    return holds


def common(mesh: Sequence[Ranks], directory: Path, read: Callable[[str], Reached | None]) -> Reached | None:
    """What the last run reached on all ranks: `progress`, or what it was to be. None if there is no such place."""
    if not mesh:
        return read("progress")
    there: dict[str, Reached | None]
    there = together(mesh, "resume", lambda: {name: read(name) for name in ("progress", NEXT)})
    places = {name: (there_is[1]["done"], there_is[1]["run"]) for name, there_is in there.items() if there_is}
    shared = set(places.values())
    for ranks in mesh:
        shared = set.intersection(*everyones(ranks, shared, "resume"))
    last = max(shared, default=None)
    name = next((name for name, place in places.items() if place == last), None)
    if name == NEXT:
        os.replace(directory / NEXT, directory / "progress")
    else:
        with contextlib.suppress(OSError):
            (directory / NEXT).unlink()
    return None if name is None else there[name]
