"""What a run of tasks over ranks has finished, in a directory that all ranks share: any number of ranks goes on there.

A chunk of tasks that is through is a file `tasks-FIRST`, with the digest of the call; one that is not has a directory
of its own beside it, for its journal. `seed` holds the number that the chunks' random numbers follow from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from gimli_core.errors import unexpected
from gimli_core.memory.files import create, names_of_ours, unfinished
from gimli_core.results import MetaGradient

__all__ = ["FinishedTasks"]

NAMES = r"seed|tasks-\d+"


class FinishedTasks:
    """The results of chunks that are through.

    Args:
        directory: shared by all ranks.
        digest: of the call.
        root: the directory that the user named, if ranks that run a chunk together each have one of their own in it.

    Raises:
        ArgumentError: a directory that cannot be made.
    """

    def __init__(self, directory: Path, digest: str, root: Path | None = None) -> None:
        self.directory, self._digest, self._root = directory, digest, root or directory
        try:
            directory.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            actual = f"{directory}: {error.strerror}"
            raise unexpected("resume", "a directory that can be written to", actual, "Name another.") from error

    def journal(self, chunk: int) -> Path:
        """The directory of the journal of a chunk."""
        return self.directory / f"tasks-{chunk}-journal"

    def seed(self, drawn: int) -> int:
        """The seed of the run that was killed, or this one, which is then that of this run. One rank asks."""
        there = self._read("seed")
        if there is None:
            self._write("seed", drawn)
        return drawn if there is None else int(there)

    def result(self, chunk: int) -> MetaGradient | None:
        """The result of a chunk, if it is through."""
        return self._read(f"tasks-{chunk}")  # type: ignore[no-any-return]

    def keep(self, chunk: int, result: MetaGradient) -> None:
        """A chunk is through."""
        self._write(f"tasks-{chunk}", result)

    def remove(self) -> None:
        """The run is through: its files go, and the directory if nothing else is in it."""
        for finished in (True, False):
            for path in names_of_ours(self.directory, NAMES, finished=finished):
                with contextlib.suppress(OSError):
                    path.unlink()
        for path in self.directory.glob("tasks-*-journal"):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()
            self._root.rmdir()

    def _write(self, name: str, value: Any) -> None:
        path = self.directory / name
        part = unfinished(path)
        with os.fdopen(create(part), "wb") as file:
            torch.save({"digest": self._digest, "value": value}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def _read(self, name: str) -> Any:
        """What was written under a name; None if nothing was. Raises ArgumentError for another call's."""
        path = self.directory / name
        if not path.exists():
            return None
        there = torch.load(path, weights_only=True)
        if there["digest"] != self._digest:
            actual = f"{self.directory}, which holds a run of another problem, or with other values"
            raise unexpected("resume", "a directory of this problem", actual, "Name another directory.")
        return there["value"]
