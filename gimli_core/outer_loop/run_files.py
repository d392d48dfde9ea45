"""The files of one outer loop: its checkpoint and its log, in the order that a kill at any moment demands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from gimli_core.errors import unexpected
from gimli_core.outer_loop.checkpoints import Checkpoints, check_storable
from gimli_core.outer_loop.log import Log, Record

__all__ = ["RunFiles"]


class Stateful(Protocol):
    """What can be put back to where it was."""

    def state_dict(self) -> dict[str, Any]:
        """All that decides how it goes on."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from there."""


class RunFiles:
    """Puts a loop where the last checkpoint was, and notes what it does from then on. Used in a `with` block.

    A checkpoint says how long the log was; it is written after those lines are on the disk. So the log is never shorter
    than a checkpoint says, and what is behind is cut off when the run is taken up.

    Args:
        directory: where the files stand.
        identity: what a checkpoint must be of.
        seconds: between two checkpoints.
        tensorboard: whether TensorBoard gets the log too, where it is installed.
        loop: what is noted.

    Raises:
        ArgumentError, StorageError: see `Checkpoints` and `Log`. Nothing was written then.
    """

    def __init__(
        self, directory: Path, identity: dict[str, Any], seconds: float, tensorboard: bool, loop: Stateful
    ) -> None:
        self._seconds, self._loop = seconds, loop
        self._checkpoints = Checkpoints(directory, identity)
        path = directory / "log.jsonl"
        try:
            state = self._checkpoints.load()
            if state is None:
                if os.path.lexists(path):
                    actual = f"{path}, which stands there without a checkpoint"
                    do = "Name another directory, or move that file."
                    raise unexpected("out", "a directory without another log", actual, do)
                check_storable(loop.state_dict())
                self._checkpoints.write({**loop.state_dict(), "log": 0})
            self._log = Log(
                path, 0 if state is None else state["log"], directory / "tensorboard" if tensorboard else None
            )
            if state is not None:
                loop.load_state_dict(state)
        except BaseException:
            self._checkpoints.close()
            raise
        self.records = self._log.records

    def note(self, record: Record) -> None:
        """Write a record, and a checkpoint if it is time for one."""
        self._log.append(record)
        if self._checkpoints.due(self._seconds):
            self._save()

    def _save(self) -> None:
        self._checkpoints.write({**self._loop.state_dict(), "log": self._log.settle()})

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After the last step, or where the loop is left between two steps, a checkpoint; after an error, none."""
        try:
            if kind is None or kind is GeneratorExit:
                self._save()
        finally:
            self._log.close()
            self._checkpoints.close()
