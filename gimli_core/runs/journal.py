"""Runs that survive their process: what a run has reached, written now and then to a directory.

A file `progress` says how many of the schedule's actions are done and holds B, S, A and the losses; each stored
point has a file of its own. Graphs and kept gradients are not written: they are computed again, from points whose
random numbers and buffers are known. `progress` is replaced in one move after all that it names is there, so that a
process may be killed at any moment. Every file says of which problem, of which run and of which step it is.
The directory is locked while a run uses it. Of what is in it, only files that a journal wrote are removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import StorageError, unexpected
from gimli_core.memory.directory import hold
from gimli_core.memory.files import damaged, is_ours, names_of_ours, read_file, write_file
from gimli_core.memory.locks import release
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.processes.agreement import together
from gimli_core.processes.mesh import Ranks
from gimli_core.record import Point
from gimli_core.runs.journal_over_ranks import NEXT, Reached, any_of, common, first_of, of_rank
from gimli_core.runs.plain_values import ILL_FITTING, fingerprint, fits, plain_snapshot, schedule_of, snapshot_of

__all__ = ["PROGRESS", "REMEDY", "SECONDS", "Journal", "demand"]

SECONDS = 30.0  # between two writings
POINT = r"point-(?:0|[1-9]\d*)"
PROGRESS = f"progress|{NEXT}"
REMEDY = "To begin anew, remove the file `progress` of this directory and run again."
TENSORS = {"adjoints", "along", "losses", "val_losses", "start", "end"}
PLAIN = {
    "problem": str,
    "run": str,
    "made": bool,
    "points": list,
    "done": int,
    "point": int,
    "validated": bool,
    "schedule": dict,
    "generators": list,
    "left": list,
}
OF_RANKS = {"of_all": str, "regrouped": bool}  # besides, where ranks share a run: what all started from; see redealt.py


class Journal:
    """The directory of a resumable run, held from here to `close`.

    Where ranks hold parts of a run, each has a directory of its own in there. What one has written counts once all
    have: until then what they wrote before stays, so that all go on from one place whenever one of them is killed.

    Args:
        directory: the run's.
        inputs: what is run.
        mesh: the dimensions of the ranks that hold parts of the run.

    Raises:
        ArgumentError: a directory that cannot be written to, or that another run is using.
    """

    def __init__(self, directory: Path, inputs: Inputs, mesh: Iterable[Ranks] = ()) -> None:
        self.mesh = list(mesh)
        self.directory = of_rank(directory, self.mesh)
        self._inputs, self._problem = inputs, fingerprint(inputs)
        self._run = first_of(self.mesh, secrets.token_hex(16))
        self._there: set[int] = set()  # the steps whose points are written
        self._process = os.getpid()
        descriptor, made = together(self.mesh, "resume", lambda: hold("resume", self.directory, "progress"))
        self._made = made or bool(self.mesh)  # that of a rank is always a run's
        self._let_go = weakref.finalize(self, release, descriptor, self._process)
        self._written = time.monotonic()
        self.regrouped = False  # whether losses were summed over other parts of batches than this run's
        self.reached = self.load()  # by the last run: (tensors, plain values), or None

    def load(self) -> Reached | None:
        """What the last run reached: (tensors, plain values), or None. What no run needs any more is removed."""
        try:
            reached = common(self.mesh, self.directory, self.read)
            if reached is not None:
                self._run, self._there = reached[1]["run"], set(reached[1]["points"])
                self._made = reached[1]["made"]
                self.regrouped = reached[1].get("regrouped", False)
            for path in names_of_ours(self.directory, POINT, finished=True):
                self._remove_stale(path)
            for path in names_of_ours(self.directory, f"{PROGRESS}|{POINT}", finished=False):
                _unlink(path)
        except BaseException:
            self.close()
            raise
        return reached

    def schedule(self, plain: dict[str, Any], disk: Path | None) -> Schedule:
        """The schedule that the last run followed, with the disk of this call: a file does not say where to write."""
        with self.reading():
            schedule = schedule_of(plain, disk or Path())
        if schedule.disk is not None and disk is None:
            actual = "one without, though the run to be resumed stores states on disk"
            raise unexpected("memory", "a schedule with disk=PATH", actual, "Call as when the run was begun.")
        return schedule

    def due(self) -> bool:
        """Whether it is time to write."""
        return any_of(self.mesh, time.monotonic() - self._written >= SECONDS)

    def write(self, points: Iterable[Point], tree: dict[str, Any], extra: dict[str, Any]) -> None:
        """Write the points that are not there yet, then `progress`, and remove points that it does not name."""
        self._refuse_forked()
        named = together(self.mesh, "resume", lambda: self._put(points, tree, extra))
        if self.mesh:
            os.replace(self.directory / NEXT, self.directory / "progress")
        for j in self._there - named:
            _unlink(self._file(j))
        self._there = named
        self._written = time.monotonic()

    def _put(self, points: Iterable[Point], tree: dict[str, Any], extra: dict[str, Any]) -> set[int]:
        """Write points and then `progress`, or what it is to be once all ranks have theirs; the points' steps."""
        named = set()
        for point in points:
            named.add(point.j)
            if point.j not in self._there:
                assert point.snapshot is not None
                buffers, generators = plain_snapshot(point.snapshot)
                tensors = {"theta": point.theta, "state": point.state, "buffers": buffers}
                written = {**self._of(point.j), "generators": generators}
                write_file(self._file(point.j), tensors, written, durable=True)
                self._there.add(point.j)
        run = {"problem": self._problem, "run": self._run, "made": self._made, "points": sorted(named)}
        run |= {"of_all": self._inputs.form.journaled, "regrouped": self.regrouped} if self.mesh else {}
        write_file(self.directory / (NEXT if self.mesh else "progress"), tree, {**extra, **run}, durable=True)
        return named

    def point(self, j: int, like: Point) -> Point:
        """The stored point j, of tensors like those of another one."""
        tree, extra = read_file(self._file(j), self._of(j), remedy=REMEDY)
        with self.reading(self._file(j)):
            demand(set(tree) == {"theta", "state", "buffers"} and set(extra) == {*self._of(j), "generators"}, "fields")
            demand(fits(tree["theta"], like.theta) and fits(tree["state"], like.state), "names or shapes")
            snapshot = snapshot_of(tree["buffers"], extra["generators"], self._inputs.environment)
            return Point(j, tree["theta"], tree["state"], snapshot)

    @contextlib.contextmanager
    def reading(self, path: Path | None = None) -> Iterator[None]:
        """In here what a file says is taken apart: what does not fit is the file's fault."""
        try:
            yield
        except ILL_FITTING as error:
            raise damaged(path or self.directory / "progress", f"{type(error).__name__}: {error}", REMEDY) from error

    def finish(self) -> None:
        """Remove the run's files, and the directory if a run made it and nothing else is in it.

        Of several ranks none removes anything before all have come to the end: one that is killed on its way there
        would otherwise begin anew, and all with it.
        """
        if os.getpid() != self._process:
            return
        any_of(self.mesh, False)
        for path in (self.directory / "progress", *map(self._file, self._there)):
            _unlink(path)
        self.close()

    def close(self) -> None:
        """Let others use the directory, which goes if a run made it and nothing is in it."""
        if self._made and self._let_go.alive and os.getpid() == self._process:
            with contextlib.suppress(OSError):
                self.directory.rmdir()
                if self.mesh:  # that of the run
                    self.directory.parent.rmdir()
        self._let_go()

    def read(self, path: Path) -> Reached | None:
        """What a rank has reached, this one or one of another number of ranks; None if there is no such file."""
        if not os.path.lexists(path):
            return None
        tree, extra = read_file(path, remedy=REMEDY)
        by_this = path.parent == self.directory
        expected = {"problem": self._problem} if by_this else {"of_all": self._inputs.form.journaled}
        if not expected.items() <= extra.items():
            actual = f"{path.parent}, which holds a run of another problem, or with other values"
            raise unexpected("resume", "a directory of this problem", actual, "Name another directory.")
        with self.reading(path):
            plain = {**PLAIN, **OF_RANKS} if self.mesh else PLAIN
            demand(set(extra) == set(plain) and set(tree) == TENSORS, "fields")
            demand(all(type(extra[name]) is kind for name, kind in plain.items()), "values")
            demand(all(type(j) is int and 0 <= j <= self._inputs.form.steps for j in extra["points"]), "points")
            demand(all(isinstance(tree[name], dict) for name in TENSORS), "tensors")
            demand(0 <= extra["point"] <= self._inputs.form.steps and extra["done"] >= 0, "place in the run")
        return tree, extra

    def _remove_stale(self, path: Path) -> None:
        """What a run left that is not the one to be resumed goes; what no journal wrote is in the way."""
        if int(path.name.partition("-")[2]) in self._there:
            return
        if not is_ours(path):
            actual = f"{path}, which no run has written"
            expected = "a directory where the names point-0, point-1, … are free"
            raise unexpected("resume", expected, actual, "Name another, best one that is not there yet.")
        _unlink(path)

    def _refuse_forked(self) -> None:
        if os.getpid() != self._process:
            raise StorageError(
                f"{self.directory}: expected to be used by the process that began the run, {self._process}; got its "
                f"forked child {os.getpid()}. Begin a run of its own in the child, in another directory."
            )

    def _of(self, j: int) -> dict[str, Any]:
        return {"problem": self._problem, "run": self._run, "j": j}

    def _file(self, j: int) -> Path:
        return self.directory / f"point-{j}"


def _unlink(path: Path) -> None:
    """Remove a file, or let it be: no run is lost to clearing up."""
    with contextlib.suppress(OSError):
        path.unlink()


def demand(holds: bool, what: str) -> None:
    """Raise, within `Journal.reading`, unless what a file says holds."""
    if not holds:
        raise ValueError(f"other {what} than were written")
