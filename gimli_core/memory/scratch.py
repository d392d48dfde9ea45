"""Directories that live as long as their process; what killed processes left is removed by the next.

A directory is ours, and abandoned, where it has our name and our marked lock file and nobody holds the lock. The lock
is taken before the directory has its name, so that it is never seen without. In it only files of our names are removed;
above it the directories that were made for it, once nothing else is in them.
Who is killed before that has left one with the name of a new one, which goes after a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path

from gimli_core.errors import unexpected
from gimli_core.memory.files import FLAGS, create, names_of_ours
from gimli_core.memory.locks import lock, release
from gimli_core.memory.way import make_way, remove_way, tries

__all__ = ["remove_scratch", "scratch_directory"]

PREFIX, NEW = "gimli-scratch-", "gimli-new-"
LOCK, MARK = "lock", b"gimli_core: the lock of a scratch directory\n"
NAME = re.compile(f"(?:{PREFIX}|{NEW})[0-9a-f]{{16}}", re.ASCII)
GRACE = 3600.0  # seconds in which a directory that has not got its name yet is let be

_locks: dict[Path, int] = {}  # the open lock of each scratch directory of this process


def scratch_directory(parent: Path) -> Path:
    """A new directory in `parent` that only this user can enter. Raises ArgumentError."""
    again = tries()
    try:
        while True:
            try:
                make_way(parent)
                for old in parent.iterdir():
                    if NAME.fullmatch(old.name) and _abandoned(old):
                        _clear(old)
                return _made(parent)
            except FileNotFoundError:  # another run has just left, and removed what it had made
                if not next(again, False):
                    raise
    except OSError as error:
        remove_way(parent)
        actual = f"{parent}: {error.strerror}"
        raise unexpected(
            "disk", "a directory that can be written to", actual, "Name another, or free some space."
        ) from error


def remove_scratch(directory: Path, process: int) -> None:
    """Remove a scratch directory that `process` made; a forked child of it removes nothing."""
    if os.getpid() == process and directory in _locks:
        _clear(directory)
        release(_locks.pop(directory), process)
        remove_way(directory.parent)


def _made(parent: Path) -> Path:
    token = secrets.token_hex(8)
    new, directory = parent / f"{NEW}{token}", parent / f"{PREFIX}{token}"
    new.mkdir(0o700)
    try:
        descriptor = create(new / LOCK)
        try:
            os.write(descriptor, MARK)
            lock(descriptor)
            new.rename(directory)
        except BaseException:
            release(descriptor, os.getpid())
            raise
    except BaseException:
        _clear(new)
        raise
    _locks[directory] = descriptor
    return directory


def _abandoned(directory: Path) -> bool:
    if directory.is_symlink():
        return False
    new = directory.name.startswith(NEW)
    if new and not _old(directory):
        return False
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | FLAGS)
    except FileNotFoundError:
        return new
    except OSError:
        return False
    try:
        mark = os.read(descriptor, len(MARK) + 1)
        return (mark == MARK or (new and not mark)) and lock(descriptor) is True
    except OSError:
        return False
    finally:
        release(descriptor, os.getpid())


def _old(directory: Path) -> bool:
    try:
        return time.time() - directory.stat().st_mtime >= GRACE
    except OSError:  # it has just gone
        return False


def _clear(directory: Path) -> None:
    with contextlib.suppress(OSError):
        for finished in (True, False):
            for path in names_of_ours(directory, r"step-\d+", finished=finished):
                with contextlib.suppress(OSError):
                    path.unlink()
        (directory / LOCK).unlink(missing_ok=True)
        directory.rmdir()
