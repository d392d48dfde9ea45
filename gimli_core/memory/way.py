"""Directories made on the way to one that a run needs for a time: they go with it.

Several runs may use such a directory at once, and the one that made it may end before the others, or be killed. So it
says itself that it was made, by a file in it: whoever finds that file alone when it leaves removes both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from gimli_core.memory.files import create

__all__ = ["make_way", "remove_way", "tries"]

MADE = ".gimli-made"
PATIENCE = 3.0  # seconds for which one tries again where others come and go meanwhile
PAUSE, LONGEST_PAUSE = 0.0005, 0.05  # seconds between two tries, at most: the first time, and in the end


def tries() -> Iterator[bool]:
    """True, as long as to try again makes sense, with a pause after each: by chance, so that nobody always loses."""
    end, pause = time.monotonic() + PATIENCE, PAUSE
    while time.monotonic() < end:
        yield True
        time.sleep(pause * secrets.randbelow(1000) / 1000)
        pause = min(2 * pause, LONGEST_PAUSE)


def make_way(directory: Path) -> None:
    """Make a directory, and those above it, as far as they are not there. Raises OSError."""
    missing = []
    for place in (directory, *directory.parents):
        if place.exists():
            break
        if place.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a link to what is not there")
        missing.append(place)
    for place in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another run's, which has just made it
            place.mkdir()
            os.close(create(place / MADE))


def remove_way(directory: Path) -> None:
    """Remove a directory, and those above it, as far as `make_way` made them and nothing else is in them."""
    for place in (directory, *directory.parents):
        with contextlib.suppress(OSError):  # it is not there, or cannot be looked into
            if not _removed(place):
                return


def _removed(place: Path) -> bool:
    for _ in tries():
        if os.listdir(place) != [MADE]:
            break
        (place / MADE).unlink()
        with contextlib.suppress(OSError):
            place.rmdir()
            return True
        os.close(create(place / MADE))  # another run has just come in, and may be gone by now
    return False
