"""Lines 5, 8-9 and 13-14 over ranks that each hold a part of the batch: what autograd gives for a part, summed.

    G_j = Σ_r w_r grad ell of part r / Σ_r w_r,    and likewise V_j Hessian, V_j mixed, L_val and its gradients

A weight w_r comes with the part (transforms/shares.py), or without the denominator. Each is linear in what the ranks
have, so nothing is differentiated through a collective. The sums are the same bits on all ranks.

Messages: one for line 5, one for lines 13-14; for lines 8-9 an all_gather_object and one. They carry whether a rank
could compute its part, so that where one raises all do, with its rank, step and line. A message is an all_reduce;
where each rank goes on with its piece of a sum alone, it is of what arrives there: an all_to_all among the ranks that
share both batch and theta, and else an all_reduce of pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from gimli_core.derivatives.finite import at_once
from gimli_core.derivatives.first_order import Gradient
from gimli_core.derivatives.micro_batches import MicroBatches
from gimli_core.derivatives.second_order import Products
from gimli_core.errors import ProcessError
from gimli_core.notation import Tensors
from gimli_core.processes.agreement import raised_by, together
from gimli_core.processes.collectives import Weight, everyones, weighed
from gimli_core.processes.mesh import Ranks
from gimli_core.processes.pieces import Pieces

__all__ = ["gradient_over_ranks", "products_over_ranks", "validation_over_ranks"]


class _Sums(NamedTuple):
    """What the ranks have together."""

    of_theta: list[Tensors]  # in pieces where there are some
    shared: dict[Hashable, Tensor]
    counts: Tensor  # of the ranks for which each flag holds
    factor: Tensor  # by which this rank's tensors entered


def gradient_over_ranks(
    ranks: Ranks,
    compute: Callable[[], tuple[Gradient, Any]],
    theta: Tensors,
    loss: Tensor,
    names: Collection[str],
    what: str,
    pieces: Pieces | None = None,
) -> tuple[Gradient, Any]:
    """(G_j and ell_j of the whole batch, with the graph of this rank's part, and the part). One message.

    Args:
        compute: the gradient of this rank's part, and the part.
        theta, loss: tensors of the shapes of the gradient and of ell_j.
        names: of the tensors that a loss may leave unused; more than theta's where they are one vector.
        pieces: of theta, of which G_j then is.
    """
    local, batch, failed = _tried(compute)
    of_theta, unused = theta, frozenset[str]()
    shared: dict[Hashable, Tensor] = {"loss": loss}
    if local is not None:
        of_theta, shared, unused = {k: local.theta[k] for k in theta}, {"loss": local.loss}, local.unused
    flags = [float(k in unused) for k in names]
    sums = _summed(ranks, [of_theta], shared, _share(batch), failed, what, pieces, flags)
    if unused:  # by all ranks
        everywhere = (sums.counts == ranks.size).tolist()
        unused = frozenset(k for k, everyone in zip(names, everywhere, strict=True) if everyone)
    assert local is not None
    return local._replace(loss=sums.shared["loss"], theta=sums.of_theta[0], unused=unused, share=_share(batch)), batch


def products_over_ranks(
    ranks: Ranks,
    compute: Callable[[], Products],
    share: tuple[float, bool],
    theta: Tensors,
    phi_loss: Tensors,
    loss: Tensor | None,
    what: str,
    pieces: Pieces | None = None,
) -> Products:
    """V_j Hessian and V_j mixed of the whole batch. Entries of phi_loss that are this rank's own (rows of its examples)
    are not summed. One message.

    Args:
        compute: the products of this rank's part.
        share: what the part counts for.
        theta: tensors of the shapes of V_j Hessian; none where it is not asked for.
        phi_loss: what all ranks share.
        loss: a tensor like ell_j where it is evaluated again.
        pieces: of theta, of which V_j Hessian then is.
    """
    of_rank: Products
    of_rank, _, failed = _tried(lambda: (compute(), None))
    curvature: Mapping[str, Tensor] = theta
    shared: dict[Hashable, Tensor] = {("phi", k): v for k, v in phi_loss.items()}
    shared |= {} if loss is None else {"loss": loss}
    if of_rank is not None:
        curvature = {k: of_rank.curvature[k] for k in theta}
        shared = {("phi", k): of_rank.mixed[k] for k in phi_loss if k in of_rank.mixed}
        shared |= {} if of_rank.loss is None else {"loss": of_rank.loss}
    sums = _summed(ranks, [curvature], shared, share, failed, what, pieces)
    assert of_rank is not None
    local = {k: v * sums.factor.to(v.dtype) for k, v in of_rank.mixed.items() if k not in phi_loss}
    zeros = of_rank.curvature if pieces is None else pieces.cut(of_rank.curvature)
    return of_rank._replace(
        curvature=sums.of_theta[0] if theta else zeros,
        mixed={k: local[k] if k in local else sums.shared["phi", k] for k in of_rank.mixed},
        loss=sums.shared.get("loss"),
    )


def validation_over_ranks(
    ranks: Ranks,
    compute: Callable[[], tuple[Gradient, list[Gradient], Any]],
    what: str,
    pieces: Pieces | None = None,
) -> tuple[Gradient, list[Gradient]]:
    """L_val of the whole batch, and the gradient of each of its numbers; in pieces of theta where there are some.

    One all_gather_object and one message.
    """
    shape: list[Any] = []

    def computed() -> tuple[Gradient, list[Gradient], Any]:
        L, each, batch = compute()
        shape.append((list(L.loss.shape), len(each)))
        return L, each, batch

    L, each, batch = together([ranks], what, computed, lambda: {"the shape of val_loss": str(shape)})
    shared: dict[Hashable, Tensor] = {"loss": L.loss}
    for row, G in enumerate(each):
        shared |= {(row, k): v for k, v in G.phi_loss.items()}
    sums = _summed(ranks, [G.theta for G in each], shared, _share(batch), None, what, pieces)
    L = L._replace(loss=sums.shared["loss"])
    return L, [
        G._replace(loss=L.loss, theta=of_theta, phi_loss={k: sums.shared[row, k] for k in G.phi_loss})
        for row, (G, of_theta) in enumerate(zip(each, sums.of_theta, strict=True))
    ]


def _tried(compute: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any, Exception | None]:
    try:
        return (*compute(), None)
    except Exception as error:
        return None, None, error


def _share(batch: Any) -> tuple[float, bool]:
    """What a part counts for, and whether it is divided by what all count for; nothing where there is none."""
    if batch is None:
        return 0.0, False
    part = batch.parts[0] if isinstance(batch, MicroBatches) else batch
    return part.weight, part.divides


def _summed(
    ranks: Ranks,
    of_theta: Sequence[Mapping[str, Tensor]],
    shared: Mapping[Hashable, Tensor],
    share: tuple[float, bool],
    failed: Exception | None,
    what: str,
    pieces: Pieces | None,
    flags: Sequence[float] = (),
) -> _Sums:
    """Σ_r w_r of each tensor, over Σ_r w_r. Raises on all ranks where one failed."""
    weight = Weight(*share) if failed is None else Weight(0.0)
    beside = [float(failed is not None), *flags]
    trees = {(i, k): v for i, tree in enumerate(of_theta) for k, v in tree.items()}
    if pieces is None or pieces.ranks.group is not ranks.group or not trees:
        cut = trees if pieces is None else {(i, k): pieces.piece(k, v) for (i, k), v in trees.items()}
        total = weighed(ranks, {**cut, **shared}, what, weight, beside)
    else:
        total = pieces.summed(trees, shared, what, weight, beside)
    if at_once(total.counts.device):
        if bool(total.counts[0] > 0):
            _raise(ranks, failed, what)
    elif failed is not None:  # the others do not look: a stall a step. They end with the group's timeout, and read why
        raise failed
    by_tree = [{k: total.sums[i, k] for k in tree} for i, tree in enumerate(of_theta)]
    return _Sums(by_tree, {name: total.sums[name] for name in shared}, total.counts[1:], total.factor)


def _raise(ranks: Ranks, failed: Exception | None, what: str) -> NoReturn:
    """Raise what failed here, or tell where it failed. Called on all ranks."""
    words = everyones(ranks, None if failed is None else raised_by(failed), "what failed")
    if failed is not None:
        raise failed
    rank, word = next((rank, word) for rank, word in enumerate(words) if word is not None)
    raise ProcessError(f"{what}: rank {rank} of {ranks.size} of {ranks.use!r} raised {word}")
