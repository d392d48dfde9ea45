"""A run over ranks that another number of ranks began: each rank goes on as if the files of those were its own.

All ranks must see the files of all that began. These stay until each rank has files of its own (redealt.py), and go
before the run goes on, `progress` first: whenever a rank is killed, one whole set is there, or two of one place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import unexpected
from gimli_core.memory.directory import hold
from gimli_core.memory.files import is_ours, names_of_ours
from gimli_core.memory.locks import release
from gimli_core.processes.agreement import together
from gimli_core.processes.collectives import everyones
from gimli_core.runs.journal import POINT, PROGRESS, Journal
from gimli_core.runs.journal_over_ranks import NEXT, Reached, Sizes, begun_by, sizes_of
from gimli_core.runs.redealt import Earlier, redeal, refuse_of_rank
from gimli_core.runs.shared_directory import check_shared

__all__ = ["take_over"]

Place = tuple[int, str]  # how many actions are done, and of which run


def take_over(journal: Journal, inputs: Inputs) -> None:
    """Where another number of ranks has written to the run's directory, put what it reached into the journal, unless
    that has reached something itself, and remove the other's files. All ranks call it; it raises on all, or on none.
    """
    mesh, root = journal.mesh, journal.directory.parent
    if not mesh:
        return
    others = together(mesh, "resume", lambda: _others(journal, root))
    for ranks in mesh:
        others = set[Sizes]().union(*everyones(ranks, others, "resume"))
    if not others:
        return
    for ranks in mesh:
        check_shared(ranks, "resume", root)
    first, locks = all(ranks.rank == 0 for ranks in mesh), list[int]()
    try:
        together(mesh, "resume", lambda: _lock(root, others, locks) if first else None)  # none goes on meanwhile
        if journal.reached is None:
            earlier = together(mesh, "resume", lambda: _last(journal, inputs, root, others))
            if earlier is not None:
                redeal(journal, inputs, earlier)
        together(mesh, "resume", lambda: _remove(root, others) if first else None)
    finally:
        for descriptor in locks:
            release(descriptor, os.getpid())


def _others(journal: Journal, root: Path) -> set[Sizes]:
    """The other numbers of ranks that have begun here. Raises ArgumentError where they shared the run otherwise."""
    mine = sizes_of(journal.mesh)
    others = begun_by(root) - {mine}
    for sizes in others:
        if [use for use, _ in sizes] != [use for use, _ in mine]:
            actual, do = f"{root}, where {_named(sizes)} began", "Share the run as they did, or begin anew elsewhere."
            raise unexpected("resume", f"a directory of a run that ranks share as these {_named(mine)} do", actual, do)
    return others


def _lock(root: Path, others: set[Sizes], locks: list[int]) -> None:
    for name in _names(others):
        if (root / name).is_dir():
            locks.append(hold("resume", root / name, "progress")[0])


def _last(journal: Journal, inputs: Inputs, root: Path, others: set[Sizes]) -> Earlier | None:
    """What a number of ranks reached of which all came to one place, the last such; None if none did.

    Raises ArgumentError for files that are not all there, and for what only that number of ranks can go on with.
    """
    places = {sizes: _place(journal, [root / name for name in _names([sizes])]) for sizes in others}
    complete = {sizes: place for sizes, place in places.items() if place is not None}
    missing = [name for name in _names(others) if not (root / name).is_dir()]
    if missing and not complete:
        actual, do = f"{root}, where {missing[0]} is missing", "Bring them together, or begin anew elsewhere."
        raise unexpected("resume", "the files of all ranks that began the run", actual, do)
    if not complete:
        return None
    sizes = max(complete, key=lambda sizes: complete[sizes])
    now, began = dict(sizes_of(journal.mesh)), dict(sizes)
    regrouped = now.get("data") != began.get("data")
    one_of_data = None  # whose files there are to read: of all, where these have pieces
    if not inputs.form.in_shards or "shard" in began:
        one_of_data = 0 if regrouped else next((ranks.rank for ranks in journal.mesh if ranks.use == "data"), 0)
    parts = []
    for path in (root / name for name in _names([sizes], one_of_data)):
        there = (journal.read(path / name) for name in ("progress", NEXT))
        parts.append((path, next(each for each in there if each and _place_of(each) == complete[sizes])))
    earlier = Earlier(_named(sizes), regrouped, parts)
    refuse_of_rank(inputs, earlier)
    return earlier


def _place(journal: Journal, directories: Sequence[Path]) -> Place | None:
    """The last that all these ranks have come to."""
    places = []
    for directory in directories:
        there = (journal.read(directory / name) for name in ("progress", NEXT))
        places.append({_place_of(each) for each in there if each})
    return max(set.intersection(*places), default=None)


def _place_of(reached: Reached) -> Place:
    return reached[1]["done"], reached[1]["run"]


def _remove(root: Path, others: set[Sizes]) -> None:
    """Remove what journals wrote, and nothing else. Raises ArgumentError where it stays: it would be taken up again."""
    directories = [root / name for name in _names(others) if (root / name).is_dir()]
    try:
        for names in (PROGRESS, POINT):
            for directory in directories:
                for path in filter(is_ours, names_of_ours(directory, names, finished=True)):
                    path.unlink()
        for directory in directories:
            for path in names_of_ours(directory, f"{PROGRESS}|{POINT}", finished=False):
                path.unlink()
            directory.rmdir()
    except OSError as error:
        actual, do = f"{error.filename}: {error.strerror}", "Remove it, and run again."
        raise unexpected("resume", "a directory that can be written to", actual, do) from error


def _names(every: Sequence[Sizes] | set[Sizes], one_of_data: int | None = None) -> list[str]:
    """The directories of all ranks, in their order; of "data" those of one alone, if it is said of which."""
    names = []
    for sizes in every:
        ranges = [[one_of_data] if use == "data" and one_of_data is not None else range(size) for use, size in sizes]
        for where in product(*ranges):
            names.append("-".join(f"{use}-{r}-of-{size}" for (use, size), r in zip(sizes, where, strict=True)))
    return names


def _named(sizes: Sizes) -> str:
    return " x ".join(f"{size} {'rank' if size == 1 else 'ranks'} of {use!r}" for use, size in sizes)
