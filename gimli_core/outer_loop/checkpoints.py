"""Checkpoints: written whole or not at all, and taken up by the same outer loop only.

A run's directory is locked while the run uses it. Its file `checkpoint` is replaced in one move, after all of it is on
the disk, so that a process may be killed at any moment. It says of which loop it is, and how long the log was.
"""

from __future__ import annotations

import io
import json
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimli_core.errors import first_line, unexpected
from gimli_core.memory.directory import directory_of, hold
from gimli_core.memory.files import damaged, names_of_ours, read_file, write_file
from gimli_core.memory.locks import release
from gimli_core.outer_loop.identity import apart, difference

__all__ = ["Checkpoints", "check_storable"]

REMEDY = "To begin anew, name another directory, or remove this one."


class Checkpoints:
    """The directory of an outer loop, held from here to `close`.

    Args:
        directory: where the run's files stand; it is made if it is not there.
        identity: what a checkpoint must be of, as plain values.

    Raises:
        ArgumentError: a directory that cannot be written to, or that another run is using.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.directory, self._process = directory_of("out", directory), os.getpid()
        self._file, self._identity = self.directory / "checkpoint", json.loads(json.dumps(identity))
        descriptor, _ = hold("out", self.directory, self._file.name)
        self._let_go = weakref.finalize(self, release, descriptor, self._process)
        self._written = float("-inf")
        for path in names_of_ours(self.directory, "checkpoint", finished=False):  # of a process that was killed
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """What the last run wrote, or None if none did.

        Raises:
            ArgumentError: a checkpoint of another outer loop.
            StorageError: a file that is not as it was written.
        """
        if not os.path.lexists(self._file):
            return None
        tree, extra = read_file(self._file, remedy=REMEDY)
        if extra.get("kind") != "outer loop":
            raise damaged(self._file, "another kind of file", REMEDY)
        self._check_identity(extra["identity"])
        try:
            state: dict[str, Any] = unpacked(tree["state"])
        except Exception as error:
            raise damaged(self._file, first_line(error), REMEDY) from error
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint. Raises StorageError, and leaves the old one, if there is no room."""
        content = {"state": packed(state)}
        write_file(self._file, content, {"kind": "outer loop", "identity": self._identity}, durable=True)
        self._written = time.monotonic()

    def due(self, seconds: float) -> bool:
        """Whether the last writing is so many seconds ago."""
        return time.monotonic() - self._written >= seconds

    def close(self) -> None:
        """Let others use the directory."""
        self._let_go()

    def _check_identity(self, written: Any) -> None:
        place, old, new = difference(written, self._identity)
        if place:
            old, new = apart(old, new)
            actual = f"the checkpoint of another one, whose {place} is {old} where this one's is {new}"
            raise unexpected(f"out {str(self.directory)!r}", "a directory of this outer loop", actual, REMEDY)


def check_storable(state: Mapping[str, Any]) -> None:
    """Raise ArgumentError unless every part of a state can be written and read again: before any work."""
    for name, part in state.items():
        try:
            unpacked(packed(part))
        except Exception as error:
            expected = "a state_dict of tensors, numbers, strings, and lists and dicts of them"
            do = "A checkpoint runs no code when it is read: leave other objects out of the state_dict."
            raise unexpected(name, expected, first_line(error), do) from error


def packed(state: Any) -> Tensor:
    """A state as bytes."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.from_numpy(np.frombuffer(file.getbuffer(), dtype=np.uint8).copy())


def unpacked(content: Tensor) -> Any:
    """The state; no code is run for it."""
    return torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)
