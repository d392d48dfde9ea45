"""Where stored points live: in memory, or in files of a directory that the user names; a part on each of the ranks
that are at the same point, if there are several."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, KeysView
from pathlib import Path

from gimli_core.errors import StorageError
from gimli_core.layout import cloned
from gimli_core.memory.allocator import long_lived
from gimli_core.memory.files import read_file, write_file
from gimli_core.memory.points_over_ranks import PointsOverRanks
from gimli_core.memory.schedules.actions import Tier
from gimli_core.memory.scratch import remove_scratch, scratch_directory
from gimli_core.processes.mesh import Ranks
from gimli_core.record import Point

__all__ = ["Storage"]


class Storage:
    """Stored points by their step, in memory or on disk. `close` forgets all and removes the files."""

    def __init__(self, disk: Path | None = None, over: Ranks | None = None) -> None:
        self._over = None if over is None else PointsOverRanks(over)
        self._points: dict[int, Point] = {}
        self._on_disk: dict[int, Point] = {}  # without tensors
        self._process = os.getpid()
        self._directory = None if disk is None else scratch_directory(disk)
        self._finish = None
        if self._directory is not None:
            self._finish = weakref.finalize(self, remove_scratch, self._directory, self._process)

    def put(self, point: Point, tier: Tier) -> None:
        """Store a point under its step."""
        if self._over is not None and point.j > 0:
            point = self._over.part(point)
        if tier is Tier.DISK:
            write_file(self._file(point.j), {"theta": point.theta, "state": point.state}, {"j": point.j})
            self._on_disk[point.j] = point._replace(theta={}, state={})
        elif point.j == 0:  # the caller's own tensors
            self._points[0] = point
        else:
            with long_lived():
                self._points[point.j] = point._replace(theta=cloned(point.theta), state=cloned(point.state))

    def get(self, j: int) -> Point:
        """The stored point j."""
        point = self._points.get(j)
        if point is None:
            tree, _ = read_file(self._file(j), {"j": j})
            point = self._on_disk[j]._replace(theta=tree["theta"], state=tree["state"])
        return point if self._over is None or j == 0 else self._over.gathered(point)

    def drop(self, j: int) -> None:
        """Forget the stored point j."""
        if self._over is not None:
            self._over.forget(j)
        if self._points.pop(j, None) is None:
            del self._on_disk[j]
            with contextlib.suppress(OSError):  # it goes with the directory
                self._file(j).unlink()

    def __iter__(self) -> Iterator[int]:
        """The steps whose points are stored."""
        return iter(sorted((*self._points, *self._on_disk)))

    def keys(self) -> KeysView[int]:
        """The same, as a set."""
        return dict.fromkeys(self).keys()

    def close(self) -> None:
        """Forget all points, and remove the directory made for them."""
        self._points.clear()
        self._on_disk.clear()
        if self._finish is not None:
            self._finish()

    def _file(self, j: int) -> Path:
        assert self._directory is not None
        if os.getpid() != self._process:
            raise StorageError(
                f"{self._directory}: expected to be used by the process that began the run, {self._process}; got its "
                f"forked child {os.getpid()}. Begin a run of its own in the child."
            )
        return self._directory / f"step-{j}"
