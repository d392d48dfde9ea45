"""What a `ScheduledRun` writes to its journal, and how it is where an earlier run was; both are its own affairs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch

from gimli_core.memory.schedules.actions import Action, Advance, Validate
from gimli_core.runs.journal import Journal, demand, rebuilding, state_after
from gimli_core.runs.plain_values import describe, fits, plain_snapshot, snapshot_of

__all__ = ["resume", "write"]


def write(run: Any, journal: Journal) -> None:
    """Write what the run has reached: its points, then all else."""
    points = [run._stored.get(j) for j in run._stored]
    if not run._records and run._point.j not in run._stored:
        points.append(run._marked())
    losses = {"train": torch.stack(run._train_losses) if run._train_losses else torch.empty(0)}
    tree: dict[str, Any] = {"B": run._B, "S": run._S, "A_loss": run._A_loss, "losses": losses}
    tree |= {"A_opt": {str(i): a for i, a in enumerate(run._A_opt)}}
    tree |= {"val_losses": {str(j): loss for j, loss in run._val_losses.items()}}
    tree["end"] = {} if run._end is None else dict(zip(("theta", "state", "buffers"), run._end, strict=True))
    assert run._start is not None
    buffers, generators = plain_snapshot(run._start)
    extra = {"done": run._done, "point": run._point.j, "schedule": describe(run._schedule)}
    extra |= {"generators": generators, "validated": run._end is not None}
    extra |= {"left": [] if run._left is None else plain_snapshot(run._left)[1]}
    journal.write(points, {**tree, "start": buffers}, extra)


def resume(run: Any, journal: Journal) -> Iterable[Action]:
    """Put the run where the earlier one was; what is still to be executed for that: graphs are computed again."""
    assert journal.reached is not None
    tree, extra = journal.reached
    environment, zeros = run.inputs.environment, (run._A_opt, run._A_loss)
    with journal.reading():
        run._B, run._S, run._A_loss = tree["B"], tree["S"], tree["A_loss"]
        run._A_opt = [tree["A_opt"][str(i)] for i in range(len(run._A_opt))]
        run._train_losses = list(tree["losses"]["train"].unbind())
        run._val_losses = {int(j): loss for j, loss in tree["val_losses"].items()}
        run._start = snapshot_of(tree["start"], extra["generators"], environment)
        if extra["validated"]:
            run._end = tree["end"]["theta"], tree["end"]["state"], tree["end"]["buffers"]
            run._left = snapshot_of(tree["start"], extra["left"], environment)
        run._done = extra["done"]
        stored, records = state_after(done := list(islice(run._all_actions(), run._done)))
        steps_run = max((action.j + 1 for action in done if isinstance(action, Advance)), default=0)
        needed = {*stored, *(() if records else (extra["point"],))}
        demand(set(extra["points"]) == needed, "points")
        demand(len(done) == run._done and len(run._train_losses) == steps_run, "numbers of actions")
        demand(any(isinstance(action, Validate) for action in done) == extra["validated"], "places in the run")
        demand(fits(dict(enumerate(run._A_opt)), dict(enumerate(zeros[0]))), "names or shapes of A_opt")
        demand(fits(run._A_loss, zeros[1]), "names or shapes of A_loss")
        demand(fits(run._B, run._point.theta if extra["validated"] else {}), "names or shapes of B")
    first = run._point._replace(snapshot=run._start)
    for j, tier in stored.items():
        run._stored.put(journal.point(j, first), tier)
    next(islice(run._actions, run._done, run._done), None)
    point, actions = rebuilding(stored, records) if records else (extra["point"], iter(()))
    run._point = run._stored.get(point) if point in stored else journal.point(point, first) if point else first
    run._return_to(run._point)
    return actions
