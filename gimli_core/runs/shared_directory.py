"""Whether ranks share a directory: found out before work, by a file that the first of them writes."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from torch import distributed

from gimli_core.errors import unexpected
from gimli_core.processes.agreement import together
from gimli_core.processes.collectives import everyones
from gimli_core.processes.mesh import Ranks

__all__ = ["check_shared"]

MARK = "seen-by-all-"
SECONDS = 2.0  # that a file system of several hosts may take to show what another host wrote


def check_shared(ranks: Ranks, argument: str, directory: Path) -> None:
    """Raise ArgumentError on all ranks unless each of them sees what the first writes to the directory, which is there
    on each; where nothing else is in it, it then goes."""
    name = f"{MARK}{distributed.get_rank()}-{secrets.token_hex(8)}"  # by who writes: others may ask here meanwhile
    path = directory / everyones(ranks, name, argument)[0]
    try:
        together([ranks], argument, lambda: _mark(path) if ranks.rank == 0 else None)
        together([ranks], argument, lambda: _see(path, ranks, argument))
    except Exception:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
        raise
    if ranks.rank == 0:
        path.unlink(missing_ok=True)


def _mark(path: Path) -> None:
    """Make the file; those that this rank made before it was killed go."""
    for left in path.parent.glob(f"{MARK}{distributed.get_rank()}-*"):
        if left.stat().st_size == 0:
            left.unlink()
    path.touch(0o600)


def _see(path: Path, ranks: Ranks, argument: str) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > end:
            actual = f"{path.parent}, where rank {ranks.rank} does not see what rank 0 writes"
            do = "Name one on a file system that all hosts mount."
            raise unexpected(argument, "a directory that all ranks share", actual, do)
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            os.scandir(path.parent).close()  # looked at anew
