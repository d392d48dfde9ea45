"""Directories made on the way to one that a run needs for a time: they go with it.

Several runs may use such a directory at once, and the one that made it may end before the others, or be killed. So it
says itself that it was made, by a file in it: whoever finds that file alone when it leaves removes both.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gimli_core.memory.files import create

__all__ = ["TRIES", "make_way", "remove_way"]

MADE = ".gimli-made"
TRIES = 10  # where others come and go meanwhile


def make_way(directory: Path) -> None:
    """Make a directory, and those above it, as far as they are not there. Raises OSError."""
    missing = []
    for place in (directory, *directory.parents):
        if os.path.lexists(place):
            break
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
    for _ in range(TRIES):
        if os.listdir(place) != [MADE]:
            break
        (place / MADE).unlink()
        with contextlib.suppress(OSError):
            place.rmdir()
            return True
        os.close(create(place / MADE))  # another run has just come in, and may be gone by now
    return False
