"""A directory that the user names: as a path, and held for one run alone."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import Any

from gimli_core.errors import unexpected
from gimli_core.memory.files import create, unfinished
from gimli_core.memory.locks import lock, release

__all__ = ["directory_of", "hold"]


def directory_of(argument: str, value: Any) -> Path:
    """`value` as a path, if it can be one. Nothing is made or looked up. Raises ArgumentError."""
    named = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    try:
        fits = isinstance(named, str) and "\0" not in named and bool(os.fsencode(named) or True)
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise unexpected(argument, "the path of a directory, a string or a Path", repr(value), "Name a directory.")
    return Path(named)


def hold(argument: str, directory: Path, name: str) -> tuple[int, bool]:
    """(a descriptor that locks the directory, whether it was made for it).

    Whether it can be written to is tried with an unfinished file of that name: who is killed then leaves one.

    Raises:
        ArgumentError: a directory that cannot be written to, or that another run is using.
    """
    made = False
    try:
        while True:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(0o700, parents=True)
                made = True
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
            try:
                alone = lock(descriptor)
                if alone is False:  # perhaps by a run that was given up, and is not collected yet
                    gc.collect()
                    alone = lock(descriptor)
                if alone is False:
                    actual = f"{directory}, which another run is using"
                    raise unexpected(argument, "a directory for this run alone", actual, "Name another, or wait.")
                if os.path.samestat(os.fstat(descriptor), os.stat(directory)):  # not one that its run has just removed
                    part = unfinished(directory / name)
                    os.close(create(part))
                    part.unlink()
                    return descriptor, made
            except BaseException:
                release(descriptor, os.getpid())
                raise
            release(descriptor, os.getpid())
    except OSError as error:
        actual = f"{directory}: {error.strerror}"
        raise unexpected(
            argument, "a directory that can be written to", actual, "Name another, or free some space."
        ) from error
