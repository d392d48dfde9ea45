"""How ranks that hold parts of one run come to one place in their journals, and which numbers of ranks have begun one.

Each rank has a directory `data-0-of-2`, `shard-1-of-3`, … in that of the run.
"""

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

__all__ = [
    "NEXT",
    "Reached",
    "Sizes",
    "any_of",
    "begun_by",
    "common",
    "first_of",
    "of_rank",
    "refuse_other_number",
    "sizes_of",
]

NEXT = "progress-next"  # what `progress` is to be, once all ranks have theirs
RANK = re.compile(r"(data|shard)-(\d+)-of-(\d+)")

Sizes = tuple[tuple[str, int], ...]  # the uses of a mesh, and the number of ranks of each
Reached = tuple[dict[str, Any], dict[str, Any]]  # tensors and plain values


def of_rank(directory: Path, mesh: Sequence[Ranks]) -> Path:
    """The directory of this rank in that of the run, which is its own where nobody shares the run."""
    return directory / "-".join(f"{ranks.use}-{ranks.rank}-of-{ranks.size}" for ranks in mesh)


def sizes_of(mesh: Sequence[Ranks]) -> Sizes:
    """How many ranks a mesh has."""
    return tuple((ranks.use, ranks.size) for ranks in mesh)


def begun_by(directory: Path) -> set[Sizes]:
    """The numbers of ranks that have directories in that of a run."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    parts = [RANK.findall(name) for name in names if RANK.sub("", name).strip("-") == ""]
    return {tuple((use, int(size)) for use, _, size in each) for each in parts if each}


def refuse_other_number(directory: Path, mesh: Sequence[Ranks]) -> None:
    """Raise ArgumentError where a run over another number of ranks was begun in the directory."""
    others = begun_by(directory) - {sizes_of(mesh)}
    if mesh and others:
        numbers = sorted("-".join(f"{use}-of-{size}" for use, size in sizes) for sizes in others)
        actual, do = f"{directory}, where {', '.join(numbers)} began", "Start as many ranks, or begin anew."
        raise unexpected("resume", "a directory of this number of ranks, whose batches are cut alike", actual, do)


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


def common(mesh: Sequence[Ranks], directory: Path, read: Callable[[Path], Reached | None]) -> Reached | None:
    """What the last run reached on all ranks: `progress`, or what it was to be. None if there is no such place."""
    if not mesh:
        return read(directory / "progress")
    there: dict[str, Reached | None]
    there = together(mesh, "resume", lambda: {name: read(directory / name) for name in ("progress", NEXT)})
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
