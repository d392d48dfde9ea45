"""What all ranks of a mesh must share, found out before any work: that each could begin, and with the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from gimli_core.errors import ProcessError, first_line, unexpected
from gimli_core.processes.collectives import everyones
from gimli_core.processes.mesh import Ranks
from gimli_core.processes.words import begin

__all__ = ["agreed_all", "raised_by", "together"]

Made = TypeVar("Made")
Where = tuple[int, ...]


class _Word(NamedTuple):
    """What one rank says to all."""

    where: Where  # its place along each dimension of the mesh
    error: str | None
    digests: Mapping[str, str]


def together(
    mesh: Iterable[Ranks], what: str, make: Callable[[], Made], alike: Callable[[], Mapping[str, str]] = dict
) -> Made:
    """What `make` makes, once it has made it on every rank; where it raises on one, all raise.

    Args:
        alike: digests of what must be the same on all ranks, by argument; asked after `make`.

    Raises:
        what `make` raises here, ProcessError if it raised elsewhere; ArgumentError for digests that differ, with what
        differs, and where.

    Cost: one all_gather_object a dimension of the mesh.
    """
    mesh = list(mesh)
    for ranks in mesh:
        begin(ranks)
    made, failed, digests = None, None, {}
    try:
        made = make()
        digests = dict(alike())
    except Exception as error:
        failed = error
    words = _words(mesh, what, None if failed is None else raised_by(failed), digests)
    if failed is not None:
        raise failed
    for word in words:
        if word.error is not None:
            raise ProcessError(f"{what}: {_named(mesh, word.where)} raised {word.error}")
    first = words[0]
    for word in words:
        for name in {**first.digests, **word.digests}:
            if first.digests.get(name) != word.digests.get(name):
                actual = f"another on {_named(mesh, word.where)} than on {_named(mesh, first.where)}"
                do = "Build it alike on every rank: from one seed (torch.manual_seed(0)), one file or a broadcast."
                raise unexpected(name, "the same on all ranks", actual, do)
    return made  # type: ignore[return-value]


def agreed_all(mesh: Iterable[Ranks] | None, holds: bool) -> bool:
    """Whether something holds on all ranks."""
    for ranks in mesh or ():
        holds = all(everyones(ranks, holds, "what all ranks must have"))
    return holds


def raised_by(error: Exception) -> str:
    """What an error says in its first line, and where it was raised as far as its notes tell."""
    return "; ".join([first_line(error), *getattr(error, "__notes__", ())])


def _words(mesh: Iterable[Ranks], what: str, error: str | None, digests: Mapping[str, str]) -> list[_Word]:
    """The words of all ranks of the mesh, in the order of their places."""
    words: list[Any] = [_Word(tuple(ranks.rank for ranks in mesh), error, digests)]
    for ranks in mesh:
        words = [word for every in everyones(ranks, words, what) for word in every]
    return sorted(words, key=lambda word: word.where)


def _named(mesh: Iterable[Ranks], where: Where) -> str:
    places = [f"{rank} of {ranks.use!r}" for rank, ranks in zip(where, mesh, strict=True)]
    return "rank " + ", ".join(places)
