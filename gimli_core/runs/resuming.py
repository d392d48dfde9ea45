"""What a run writes to its journal, and how it is put where an earlier run was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from gimli_core.environment import Snapshot
from gimli_core.memory.schedules.actions import Action, Advance, Drop, Keep, Store, Sweep, Tier, Validate
from gimli_core.record import Point
from gimli_core.runs.adjoints import Adjoints
from gimli_core.runs.execution import Execution
from gimli_core.runs.journal import Journal, demand
from gimli_core.runs.plain_values import describe, fits, plain_snapshot, snapshot_of

__all__ = ["resume", "write"]


def write(run: Execution, journal: Journal, actions: int, left: Snapshot | None) -> None:
    """Write what the run has reached: its points, then all else.

    Args:
        actions: how many are done.
        left: the environment that `forward` leaves, once it is through.
    """
    points = [run.stored.get(j) for j in run.stored]
    if not run.records and run.working.at.j not in run.stored:
        points.append(run.working.marked())
    train = run.losses.train
    tree: dict[str, Any] = {"adjoints": {str(row): _tree_of(A) for row, A in enumerate(run.adjoints)}}
    tree |= {"along": {} if run.along is None else {"along": run.along}}
    tree |= {"losses": {"train": torch.stack(train) if train else torch.empty(0)}}
    tree |= {"val_losses": {str(j): loss for j, loss in run.losses.val.items()}}
    tree["end"] = {} if run.end is None else dict(zip(("theta", "state", "buffers"), run.end, strict=True))
    assert run.working.start is not None
    buffers, generators = plain_snapshot(run.working.start)
    extra = {"done": actions, "point": run.working.at.j, "schedule": describe(run.schedule)}
    extra |= {"generators": generators, "validated": run.end is not None}
    extra |= {"left": [] if left is None else plain_snapshot(left)[1]}
    journal.write(points, {**tree, "start": buffers}, extra)


def _tree_of(A: Adjoints) -> dict[str, Any]:
    return {
        "B": A.B,
        "S": A.S,
        "A_opt": {str(i): a for i, a in enumerate(A.A_opt)},
        "A_loss": A.A_loss,
        "A_rows": {k: rows.parts() for k, rows in A.A_rows.items()},
    }


def _adjoints_of(tree: dict[str, Any], run: Execution, like: Point) -> Adjoints:
    """Adjoints from their tree, of tensors like those of a point."""
    A = Adjoints(run.inputs, like)
    A_opt = [tree["A_opt"][str(i)] for i in range(len(A.A_opt))]
    demand(fits(dict(enumerate(A_opt)), dict(enumerate(A.A_opt))), "names or shapes of A_opt")
    demand(fits(tree["A_loss"], A.A_loss), "names or shapes of A_loss")
    demand(fits(tree["B"], A.B) and fits(tree["S"], A.S), "names or shapes of B")
    demand(set(tree["A_rows"]) == set(A.A_rows), "names of A_loss")
    for k, indexed in tree["A_rows"].items():
        A.A_rows[k].add(indexed["rows"], indexed["values"])
    A.B, A.S, A.A_opt, A.A_loss = tree["B"], tree["S"], A_opt, tree["A_loss"]
    return A


def resume(run: Execution, journal: Journal) -> tuple[int, Snapshot | None, Iterable[Action]]:
    """Put the run where the earlier one was.

    Returns: how many actions are done; the environment that `forward` left, if it was through; and what is still to be
    executed to be where the earlier run was, since graphs are computed again.
    """
    assert journal.reached is not None
    tree, extra = journal.reached
    environment, working = run.inputs.environment, run.working
    left = None
    with journal.reading():
        train = list(tree["losses"]["train"].unbind())
        start = snapshot_of(tree["start"], extra["generators"], environment)
        if extra["validated"]:
            run.end = tree["end"]["theta"], tree["end"]["state"], tree["end"]["buffers"]
            left = snapshot_of(tree["start"], extra["left"], environment)
        stored, records = _state_after(done := list(islice(run.actions(), extra["done"])))
        steps_run = max((action.j + 1 for action in done if isinstance(action, Advance)), default=0)
        needed = {*stored, *(() if records else (extra["point"],))}
        demand(set(extra["points"]) == needed, "points")
        demand(len(done) == extra["done"] and len(train) == steps_run, "numbers of actions")
        demand(any(isinstance(action, Validate) for action in done) == extra["validated"], "places in the run")
        run.losses.regrouped = journal.regrouped
        run.losses.train, run.losses.val = train, {int(j): loss for j, loss in tree["val_losses"].items()}
        if extra["validated"]:
            rows = run.rows
            demand(set(tree["adjoints"]) == set(map(str, range(rows))), "numbers of outer losses")
            run.adjoints = [_adjoints_of(tree["adjoints"][str(row)], run, working.at) for row in range(rows)]
            run.along = tree["along"].get("along")
    working.start = start
    first = working.at._replace(snapshot=start)
    for j, tier in stored.items():
        run.stored.put(journal.point(j, first), tier)
    point, actions = _rebuilding(stored, records) if records else (extra["point"], iter(()))
    working.at = run.stored.get(point) if point in stored else journal.point(point, first) if point else first
    working.return_to(working.at)
    return extra["done"], left, actions


def _state_after(actions: Iterable[Action]) -> tuple[dict[int, Tier], list[int]]:
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


def _rebuilding(stored: Iterable[int], records: list[int]) -> tuple[int, Iterator[Action]]:
    """Where to start, and the actions that bring the graphs of `records`, a range of steps, back."""
    start = max((j for j in stored if j <= records[0]), default=0)
    actions = (Advance(j, Keep.GRAPH if j >= records[0] else Keep.NOTHING) for j in range(start, records[-1] + 1))
    return start, actions
