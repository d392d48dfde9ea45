"""The log of an outer loop: JSON lines that a checkpoint cuts to its own length; TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gimli_core.errors import StorageError
from gimli_core.trees import leaves

__all__ = ["Log", "Record", "numbers_in"]

Record = dict[str, Any]


class Log:
    """A file with one JSON object a line, open from here to `close`.

    Args:
        path: where it stands.
        length: how many bytes of it the checkpoint counts: what is behind them is cut off.
        tensorboard: a directory for TensorBoard's files, where TensorBoard is installed; or None.

    Raises:
        StorageError: a log that is shorter than its checkpoint says, or not as it was written; no room.
    """

    def __init__(self, path: Path, length: int, tensorboard: Path | None = None) -> None:
        self.path, self.length = path, length
        try:
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            do = "Name another directory."
            raise StorageError(f"{path}: expected the run's log; got: {error.strerror}. {do}") from error
        try:
            self.records = self._cut()
        except BaseException:
            self._file.close()
            raise
        self._directory = tensorboard
        self._board: Any = None

    def append(self, record: Record) -> None:
        """Write one line. Raises StorageError, and leaves no part of it, if there is no room."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            os.ftruncate(self._file.fileno(), self.length)
            self._file.seek(self.length)
            raise self._no_room(error) from error
        self.length += len(line)
        self.records.append(record)
        self._board = self._board or _board(self._directory, record["step"])
        if self._board is not None:
            for name, value in numbers_in(record):
                self._board.add_scalar(name, value, record["step"])

    def settle(self) -> int:
        """See to it that all lines are on the disk; their length in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._no_room(error) from error
        return self.length

    def _no_room(self, error: OSError) -> StorageError:
        do = "Free some space and run again: it goes on from the last checkpoint."
        return StorageError(f"{self.path}: expected room for one more line; got: {error.strerror}. {do}")

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _cut(self) -> list[Record]:
        """The records that the checkpoint counts; lines that were written after it go."""
        lines = self._file.read(self.length)
        try:
            if len(lines) != self.length or (lines and not lines.endswith(b"\n")):
                raise ValueError(f"{len(lines)} bytes where the checkpoint counts {self.length}")
            records = [json.loads(line) for line in lines.splitlines()]
        except ValueError as error:
            do = "To begin anew, name another directory, or remove this one."
            raise StorageError(f"{self.path}: expected the log as it was written; got {error}. {do}") from error
        os.ftruncate(self._file.fileno(), self.length)
        return records


def numbers_in(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, number) of everything in a record but its step; `evaluation/accuracy` for what is inside."""
    numbers = ((path, value) for path, value in leaves(record) if value is not None and path[-1] != "step")
    return (("/".join(map(str, path)), float(value)) for path, value in numbers)


def _board(directory: Path | None, step: int) -> Any:
    """TensorBoard's writer from this step on, if it is wanted and installed. What a killed run wrote is hidden."""
    if directory is None or importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), purge_step=step)
