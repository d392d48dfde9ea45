"""The call of one process that has the parts of all ranks: what a call over ranks stands for, for whoever judges it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from gimli_core.arguments.batches import check_batches, check_val_batch
from gimli_core.arguments.call import Call
from gimli_core.arguments.phi_loss import indexed_entries
from gimli_core.derivatives.micro_batches import MicroBatches, dim_of_examples
from gimli_core.errors import unexpected
from gimli_core.processes.agreement import together
from gimli_core.processes.collectives import everyones
from gimli_core.processes.mesh import Ranks
from gimli_core.transforms.shares import Share, share_of

__all__ = ["gathered"]

Part = tuple[float, bool, Any]  # what it counts for, whether it is divided by what all count for, and the batch


def gathered(call: Call, ranks: Ranks, inner: Iterable[int], outer: Iterable[int]) -> Call:
    """The call of one process with what all ranks have of the batches of some steps.

    Args:
        inner: the steps whose inner batch is gathered.
        outer: the j of L_val(theta_j) likewise.

    Raises ArgumentError beside indexed entries, of which each rank has its rows.
    Cost: these batches, on every rank; two all_gather_object.
    """
    if indexed_entries(call.phi_loss):
        actual, do = "indexed entries", "Judge the call of one process."
        raise unexpected("phi_loss", "entries that all ranks share, where all parts are needed on one", actual, do)
    dim = dim_of_examples(call.tasks)
    batch, J = check_batches(call.train_batches, call.steps)
    val_batch = check_val_batch(call.val_batch, J)

    def mine() -> tuple[dict[int, Part], dict[int, Part]]:
        return {j: _part(batch(j), dim) for j in inner}, {j: _part(val_batch(j), dim) for j in outer}

    every = everyones(ranks, together([ranks], "the batches", mine), "the batches")
    trains = {j: _joined([parts[j] for parts, _ in every], dim) for j in every[0][0]}
    vals = {j: _joined([parts[j] for _, parts in every], dim) for j in every[0][1]}
    return replace(call, mesh=None, steps=J, train_batches=lambda j: trains[j], val_batch=partial(vals.__getitem__))


def _part(share: Any, dim: int) -> Part:
    batch = share.batch if isinstance(share, Share) else share
    return (*share_of(share, dim), batch)


def _joined(parts: list[Part], dim: int) -> MicroBatches:
    """The parts of all ranks as those of one batch."""
    total = sum(weight for weight, divides, _ in parts if divides) or 1.0
    pieces: list[Any] = []
    weights: list[float] = []
    for weight, _, batch in parts:
        if weight == 0:
            continue
        inside = batch if isinstance(batch, MicroBatches) else MicroBatches([batch], [1.0])
        shares = inside.weights or [share_of(piece, dim)[0] for piece in inside.parts]
        sum_of_shares = sum(shares) if inside.weights is None else 1.0
        pieces += inside.parts
        weights += [weight / total * share / sum_of_shares for share in shares]
    # Weights of the denominators that the ranks say, which MicroBatches itself would not take from a user.
    return MicroBatches(pieces)._replace(weights=tuple(weights))
