"""What one number of ranks has reached of a run, dealt anew to another.

    theta, s, B and S in pieces          in a row, and cut anew: to the bit
    a rank's term of a sum over ranks    summed, and the first's: A_opt, and S of numbers, where theta is in pieces
    all else                             as one of them had it: A_loss, losses; everything where theta is whole

Batches in other parts ("data") must be the same batches: the first loss is the same to rounding, and so are all sums
from here on. What belongs to one rank's part goes to no other: of a loss that draws random numbers or moves buffers,
and beside indexed entries, a run goes on with the number of ranks that began it.

Cost: on every rank theta, s, B and S as a whole, one point after the other; for "data" a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.environment import Snapshot
from gimli_core.errors import unexpected
from gimli_core.forward_unroll import inner_gradient
from gimli_core.memory.files import read_file
from gimli_core.record import Point
from gimli_core.runs.journal import REMEDY, Journal
from gimli_core.runs.journal_over_ranks import Reached
from gimli_core.runs.plain_values import plain_snapshot, snapshot_of
from gimli_core.transforms.shards import Shards

__all__ = ["Earlier", "redeal", "refuse_of_rank"]


class Earlier(NamedTuple):
    """What other ranks have reached."""

    ranks: str  # which
    regrouped: bool  # whether they had other parts of batches than these
    parts: Sequence[tuple[Path, Reached]]  # the directory of each that has another piece, in order, and what it says


def refuse_of_rank(inputs: Inputs, earlier: Earlier) -> None:
    """Raise ArgumentError for a run of which something belongs to the rank that had a part of a batch."""
    if not earlier.regrouped:
        return
    path, (tree, extra) = earlier.parts[0]
    buffers, generators = [tree["start"]], [extra["generators"], extra["left"] or extra["generators"]]
    if extra["points"]:
        last, plain = _point(path, extra, extra["points"][-1])
        buffers, generators = [*buffers, last["buffers"]], [*generators, plain["generators"]]
    actual = ""
    if inputs.values.indexed:
        actual = "one with indexed entries of phi_loss, whose rows stay with the rank of their examples"
    elif any(other != generators[0] for other in generators):
        actual = "one that draws random numbers, of which each rank has a stream of its own"
    elif any(not torch.equal(other[k], b) for other in buffers for k, b in buffers[0].items()):
        actual = "one that moves buffers of a module, which each rank has of its own part"
    if actual:
        expected = f"a run that another number of ranks can go on with, or the {earlier.ranks} that began it"
        raise unexpected("resume", expected, actual, f"Start {earlier.ranks}, or begin anew in another directory.")


def redeal(journal: Journal, inputs: Inputs, earlier: Earlier) -> None:
    """Write this rank's part of what was reached to the journal. All ranks call it; it raises on all, or on none."""
    path, (tree, extra) = earlier.parts[0]
    trees = [part for _, (part, _) in earlier.parts]
    if earlier.regrouped and tree["losses"]["train"].numel():
        _check_batches(inputs, tree["losses"]["train"][0], earlier)
    plain = {name: extra[name] for name in ("done", "point", "schedule", "generators", "validated", "left")}
    generators = inputs.environment.capture().generators if earlier.regrouped else None
    if generators is not None:  # nothing has been drawn: those of this process stay as they are
        _, numbers = plain_snapshot(Snapshot(generators, ()))
        plain |= {"generators": numbers, "left": numbers if extra["left"] else []}
    with journal.reading(path / "progress"):
        rows = {row: _adjoints(inputs, [part["adjoints"][row] for part in trees]) for row in tree["adjoints"]}
        end = {"buffers": tree["end"]["buffers"], **_dealt(inputs, [part["end"] for part in trees])} if rows else {}
    journal.regrouped = extra["regrouped"] or earlier.regrouped
    journal.write(_points(journal, inputs, earlier.parts, generators), {**tree, "adjoints": rows, "end": end}, plain)
    journal.reached = journal.load()


def _check_batches(inputs: Inputs, first: Tensor, earlier: Earlier) -> None:
    """Raise ArgumentError unless the first inner loss, of all parts, is the one that there was; a scalar, or [T]."""
    with inputs.environment.trial():
        point = Point(0, inputs.values.theta_0, inputs.values.state_0, None)
        loss = inner_gradient(inputs, point, keep_graph=False).loss
    if not torch.allclose(loss, first, rtol=torch.finfo(loss.dtype).eps ** 0.5, atol=0.0):
        raise unexpected(
            "train_batches",
            f"the batches of the run that {earlier.ranks} began, in other parts, and no random numbers: a loss of "
            f"{first.tolist()} at inner step j = 0",
            f"one of {loss.tolist()}",
            f"Give the ranks together the same batches, or start {earlier.ranks}.",
        )


def _point(path: Path, extra: Mapping[str, Any], j: int) -> Reached:
    return read_file(path / f"point-{j}", {"problem": extra["problem"], "run": extra["run"], "j": j}, remedy=REMEDY)


def _points(
    journal: Journal, inputs: Inputs, parts: Sequence[tuple[Path, Reached]], generators: Any
) -> Iterator[Point]:
    """The stored points, one after the other; with these random numbers, if there are some."""
    first, (_, extra) = parts[0]
    for j in extra["points"]:
        trees, plain = zip(*(_point(path, extra, j) for path, (_, extra) in parts), strict=True)
        with journal.reading(first / f"point-{j}"):
            snapshot = snapshot_of(trees[0]["buffers"], plain[0]["generators"], inputs.environment)
            if generators is not None:
                snapshot = snapshot._replace(generators=generators)
            dealt = _dealt(inputs, trees)
            yield Point(j, dealt["theta"], dealt["state"], snapshot)


def _dealt(inputs: Inputs, trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """theta and s of this rank."""
    shards = _shards(inputs)
    if shards is None:
        return {"theta": trees[0]["theta"], "state": trees[0]["state"]}
    theta = shards.pieces.redealt([tree["theta"] for tree in trees])
    return {"theta": theta, "state": shards.rule.redealt([tree["state"] for tree in trees])}


def _adjoints(inputs: Inputs, trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What this rank carries through the sweep."""
    shards = _shards(inputs)
    if shards is None:
        return dict(trees[0])
    pieces, rule = shards.pieces, shards.rule
    return {
        "B": pieces.redealt([tree["B"] for tree in trees]),
        "S": rule.redealt_adjoint([tree["S"] for tree in trees]),
        "A_opt": {i: pieces.once(torch.stack([tree["A_opt"][i] for tree in trees]).sum(0)) for i in trees[0]["A_opt"]},
        "A_loss": trees[0]["A_loss"],
        "A_rows": trees[0]["A_rows"],
    }


def _shards(inputs: Inputs) -> Shards | None:
    return next((transform for transform in inputs.form.transforms if isinstance(transform, Shards)), None)
