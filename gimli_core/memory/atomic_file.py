"""Files that are written whole or not at all: beside their place first, and put there by one rename."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gimli_core.errors import ArgumentError, kind_of, unexpected

__all__ = ["check_writable", "writing"]


def check_writable(argument: str, path: str | os.PathLike[str]) -> None:
    """Raise what `writing` would raise at this path: before the work, not after it.

    It tries, since nothing else tells of every reason (a full name, a NUL, a read-only mount), and leaves nothing.

    Raises:
        ArgumentError: no file can be written there.
    """
    with _explained(argument, path):
        place = _place(path)
        if _is_plain(place):
            unfinished, file = _beside(place)
            file.close()
            unfinished.unlink()
        elif not os.access(place, os.W_OK):
            raise PermissionError("permission denied")


@contextmanager
def writing(argument: str, path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write; at the end of the block it stands at `path`, and before it what stood there.

    An old file keeps its permissions, a symbolic link goes on pointing to its file. A device or a pipe is written
    directly, since nothing could be put in its place.

    Args:
        argument: what the caller calls the path, for errors.
        path: where the file is to stand.

    Raises:
        ArgumentError: no file can be written there; the disk is full.
    """
    with _explained(argument, path):
        place = _place(path)
        if not _is_plain(place):
            with open(place, "wb") as direct:
                yield direct
            return
        unfinished, file = _beside(place)
        try:
            with file:
                yield file
            if place.exists():
                unfinished.chmod(stat.S_IMODE(place.stat().st_mode))
            unfinished.replace(place)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise


def _place(path: str | os.PathLike[str]) -> Path:
    """Where `path` leads; an OSError that names the reason where no file can be."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(kind_of(path))
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError("a directory")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"no directory {str(place.parent)!r}")
    with suppress(FileNotFoundError):
        os.stat(place)  # a name that is too long or cannot be encoded is refused here
    return place


def _is_plain(place: Path) -> bool:
    return not place.exists() or place.is_file()


def _beside(place: Path) -> tuple[Path, BinaryIO]:
    """A new file in the same directory, under a name that nobody can guess or has put a link at."""
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError("permission denied")
    unfinished = place.with_name(f".{secrets.token_hex(8)}.part")
    return unfinished, os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")


@contextmanager
def _explained(argument: str, path: object) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, (ArgumentError, BrokenPipeError)):
            raise
        actual = f"{getattr(error, 'strerror', None) or error}"
        actual = actual[:1].lower() + actual[1:]
        raise unexpected(
            f"{argument} {str(path)!r}", "a file that can be written", actual, "Give another path."
        ) from None
