"""Runs that survive their process: what a run has reached, written now and then to a directory.

A file `progress` says how many of the schedule's actions are done and holds B, S, A and the losses; each stored
point has a file of its own. Graphs are not written: they are computed again. `progress` is replaced in one
move after all that it names is there, so that a process may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.environment import Snapshot
from gimli_core.errors import ArgumentError, explain
from gimli_core.memory.schedules.actions import Action, Advance, Drop, Keep, Schedule, Store, Sweep, Tier
from gimli_core.memory.schedules.checkpoint import Checkpoint
from gimli_core.memory.schedules.retain_graphs import RetainGraphs
from gimli_core.memory.schedules.store_states import StoreStates
from gimli_core.memory.storage import read_file, write_file
from gimli_core.record import Point

__all__ = [
    "SECONDS",
    "Journal",
    "describe",
    "plain_snapshot",
    "rebuilding",
    "schedule_of",
    "snapshot_of",
    "state_after",
]

SECONDS = 30.0  # between two writings


class Journal:
    """The directory of a resumable run."""

    def __init__(self, directory: str | Path, inputs: Inputs) -> None:
        self.directory = Path(directory)
        self.problem = fingerprint(inputs)
        self._written = time.monotonic()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "progress.tmp").touch()
        except OSError as error:
            came = f"{self.directory}: {error.strerror}"
            raise ArgumentError(
                explain("resume", "a directory that can be written to", came, "Name another, or free some space.")
            ) from error

        self.reached = self._load()

    def _load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What the last run reached: (tensors, plain values), or None."""
        if not (self.directory / "progress").exists():
            return None
        tree, extra = read_file(self.directory / "progress")
        if extra["problem"] != self.problem:
            came = f"{self.directory}, which holds a run of another problem, or with other values"
            raise ArgumentError(explain("resume", "a directory of this problem", came, "Name another directory."))
        return tree, extra

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._written >= SECONDS

    def write(self, points: Iterable[Point], tree: dict[str, Any], extra: dict[str, Any]) -> None:
        """Write the points that are not there yet, then `progress`, and remove points that it does not name."""
        named = set()
        for point in points:
            path = self.directory / f"point-{point.j}"
            named.add(path)
            if not path.exists():
                snapshot, generators = plain_snapshot(point.snapshot)
                held = {"theta": point.theta, "state": point.state, "buffers": snapshot}
                write_file(path, held, {"j": point.j, "generators": generators}, durable=True)
        write_file(self.directory / "progress", tree, {**extra, "problem": self.problem}, durable=True)
        for path in set(self.directory.glob("point-*")) - named:
            path.unlink()
        self._written = time.monotonic()

    def point(self, j: int) -> Point:
        """The stored point j."""
        tree, extra = read_file(self.directory / f"point-{j}")
        return Point(j, tree["theta"], tree["state"], snapshot_of(tree.get("buffers", {}), extra["generators"]))

    def finish(self) -> None:
        """Remove the run's files, and the directory if nothing else is in it."""
        for path in (self.directory / "progress", self.directory / "progress.tmp", *self.directory.glob("point-*")):
            path.unlink(missing_ok=True)
        if not any(self.directory.iterdir()):
            self.directory.rmdir()


def describe(schedule: Schedule) -> dict[str, Any]:
    """A schedule as plain values; `schedule_of` builds it again."""
    if not isinstance(schedule, Checkpoint):
        return {"kind": type(schedule).__name__}
    fields = {name: getattr(schedule, name) for name in ("snapshots", "graphs", "gradients", "disk_snapshots")}
    return {"kind": "Checkpoint", **fields, "disk": None if schedule.disk is None else str(schedule.disk)}


def schedule_of(plain: dict[str, Any]) -> Schedule:
    """The schedule that `describe` described."""
    plain = dict(plain)
    kind = plain.pop("kind")
    kinds: dict[str, type[Schedule]] = {rule.__name__: rule for rule in (Checkpoint, RetainGraphs, StoreStates)}
    return kinds[kind](**plain)


def state_after(actions: Iterable[Action]) -> tuple[dict[int, Tier], list[int]]:
    """(stored points, steps whose graph is kept) after some actions from the start."""
    stored: dict[int, Tier] = {}
    records: set[int] = set()
    for action in actions:
        match action:
            case Advance(j, keep):
                records |= {j} if keep is Keep.GRAPH else set()
            case Store(j, tier):
                stored[j] = tier
            case Drop(j):
                del stored[j]
            case Sweep(j):
                records.discard(j)
    return stored, sorted(records)


def rebuilding(stored: Iterable[int], records: list[int]) -> tuple[int, Iterator[Action]]:
    """Where to start, and the actions that bring the graphs of `records`, a range of steps, back."""
    start = max((j for j in stored if j <= records[0]), default=0)
    actions = (Advance(j, Keep.GRAPH if j >= records[0] else Keep.NOTHING) for j in range(start, records[-1] + 1))
    return start, actions


def fingerprint(inputs: Inputs) -> str:
    """A digest of all values that a run starts from; the losses' code is not among them."""
    digest = hashlib.sha256()

    def add(thing: Any) -> None:
        if isinstance(thing, Tensor):
            whole = thing.detach().cpu().contiguous()
            digest.update(f"{whole.dtype}{list(whole.shape)}".encode())
            digest.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(thing, dict):
            for key, value in thing.items():
                add(str(key))
                add(value)
        elif isinstance(thing, (tuple, list)):
            for value in thing:
                add(value)
        else:
            digest.update(repr(thing).encode() if isinstance(thing, (int, float, str, bool, type(None))) else b"?")

    add(
        [
            inputs.values.theta_0,
            inputs.values.frozen,
            inputs.values.state_0,
            inputs.values.phi_loss,
            inputs.values.weights,
            inputs.form.steps,
            inputs.form.recurrence,
            inputs.form.second_order if inputs.form.evaluates_again else None,
            not inputs.form.curvature,
            inputs.form.first,
        ]
    )
    add([type(inputs.form.optimizer).__name__, inputs.values.hyper.at(0), inputs.values.val_batch])
    add(
        [inputs.values.hyper.at(j) for j in (0, inputs.form.steps - 1)] + [inputs.values.batch(0)]
        if inputs.form.steps
        else []
    )
    return digest.hexdigest()


def plain_snapshot(snapshot: Snapshot | None) -> tuple[dict[str, Tensor], list[Any] | None]:
    """A snapshot as named buffers and plain numbers."""
    if snapshot is None:
        return {}, None
    torch_state, (name, keys, *rest), python_state, *more = snapshot.generators
    generators = [torch_state.tolist(), [name, keys.tolist(), *rest], python_state, *(state.tolist() for state in more)]
    return {str(i): b for i, b in enumerate(snapshot.buffers)}, generators


def snapshot_of(buffers: dict[str, Tensor], generators: list[Any] | None) -> Snapshot | None:
    if generators is None:
        return None
    torch_state, (name, keys, *rest), (version, numbers, gauss), *more = generators
    return Snapshot(
        (
            torch.tensor(torch_state, dtype=torch.uint8),
            (name, np.array(keys, dtype=np.uint32), *rest),
            (version, tuple(numbers), gauss),
            *(torch.tensor(state, dtype=torch.uint8) for state in more),
        ),
        tuple(buffers[str(i)] for i in range(len(buffers))),
    )
