"""Lines 5, 8-9 and 13-14 over ranks that each hold a part of the batch: what autograd gives for a part, summed.

    G_j = Σ_r w_r grad ell of part r / Σ_r w_r,    and likewise V_j Hessian, V_j mixed, L_val and its gradients

A weight w_r comes with the part (transforms/shares.py), or without the denominator. Each is linear in what the ranks
have, so nothing is differentiated through a collective. The sums are the same bits on all ranks.

Messages: one all_reduce for line 5, one for lines 13-14; for lines 8-9 an all_gather_object and an all_reduce. They
carry whether a rank could compute its part, so that where one raises all do, with its rank, step and line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gimli_core.derivatives.finite import at_once
from gimli_core.derivatives.first_order import Gradient
from gimli_core.derivatives.micro_batches import MicroBatches
from gimli_core.derivatives.second_order import Products
from gimli_core.errors import ProcessError
from gimli_core.notation import Tensors
from gimli_core.processes.agreement import raised_by, together
from gimli_core.processes.collectives import everyones, weighed
from gimli_core.processes.mesh import Ranks

__all__ = ["gradient_over_ranks", "products_over_ranks", "validation_over_ranks"]


class _Sums(NamedTuple):
    """What the ranks have together."""

    tensors: dict[Hashable, Tensor]
    counts: Tensor  # of the ranks for which each flag holds
    factor: Tensor  # by which this rank's tensors entered


def gradient_over_ranks(
    ranks: Ranks,
    compute: Callable[[], tuple[Gradient, Any]],
    theta: Tensors,
    loss: Tensor,
    names: Collection[str],
    what: str,
) -> tuple[Gradient, Any]:
    """(G_j and ell_j of the whole batch, with the graph of this rank's part, and the part). One all_reduce.

    Args:
        compute: the gradient of this rank's part, and the part.
        theta, loss: tensors of the shapes of the gradient and of ell_j.
        names: of the tensors that a loss may leave unused; more than theta's where they are one vector.
    """
    local, batch, failed = _tried(compute)
    tensors: dict[Hashable, Tensor] = {"loss": loss, **{("theta", k): v for k, v in theta.items()}}
    unused = frozenset[str]()
    if local is not None:
        tensors = {"loss": local.loss, **{("theta", k): local.theta[k] for k in theta}}
        unused = local.unused
    sums = _summed(ranks, tensors, _share(batch), failed, what, [float(k in unused) for k in names])
    if unused:  # by all ranks
        everywhere = (sums.counts == ranks.size).tolist()
        unused = frozenset(k for k, everyone in zip(names, everywhere, strict=True) if everyone)
    assert local is not None
    G = {k: sums.tensors["theta", k] for k in theta}
    return local._replace(loss=sums.tensors["loss"], theta=G, unused=unused, share=_share(batch)), batch


def products_over_ranks(
    ranks: Ranks,
    compute: Callable[[], Products],
    share: tuple[float, bool],
    theta: Tensors,
    phi_loss: Tensors,
    loss: Tensor | None,
    what: str,
) -> Products:
    """V_j Hessian and V_j mixed of the whole batch. Entries of phi_loss that are this rank's own (rows of its examples)
    are not summed. One all_reduce.

    Args:
        compute: the products of this rank's part.
        share: what the part counts for.
        theta: tensors of the shapes of V_j Hessian; none where it is not asked for.
        phi_loss: what all ranks share.
        loss: a tensor like ell_j where it is evaluated again.
    """
    of_rank: Products
    of_rank, _, failed = _tried(lambda: (compute(), None))
    trees: list[tuple[str, Mapping[str, Tensor]]] = [("theta", theta), ("phi", phi_loss)]
    trees.append(("loss", {} if loss is None else {"loss": loss}))
    if of_rank is not None:
        again = {} if of_rank.loss is None else {"loss": of_rank.loss}
        trees = [
            ("theta", {k: of_rank.curvature[k] for k in theta}),
            ("phi", {k: of_rank.mixed[k] for k in phi_loss if k in of_rank.mixed}),
            ("loss", again),
        ]
    sums = _summed(ranks, {(name, k): v for name, tree in trees for k, v in tree.items()}, share, failed, what)
    assert of_rank is not None
    local = {k: v * sums.factor.to(v.dtype) for k, v in of_rank.mixed.items() if k not in phi_loss}
    return of_rank._replace(
        curvature={k: sums.tensors.get(("theta", k), v) for k, v in of_rank.curvature.items()},
        mixed={k: local[k] if k in local else sums.tensors["phi", k] for k in of_rank.mixed},
        loss=sums.tensors.get(("loss", "loss")),
    )


def validation_over_ranks(
    ranks: Ranks, compute: Callable[[], tuple[Gradient, list[Gradient], Any]], what: str
) -> tuple[Gradient, list[Gradient]]:
    """L_val of the whole batch, and the gradient of each of its numbers. One all_gather_object and one all_reduce."""
    shape: list[Any] = []

    def computed() -> tuple[Gradient, list[Gradient], Any]:
        L, each, batch = compute()
        shape.append((list(L.loss.shape), len(each)))
        return L, each, batch

    L, each, batch = together([ranks], what, computed, lambda: {"the shape of val_loss": str(shape)})
    tensors: dict[Hashable, Tensor] = {"loss": L.loss}
    for row, G in enumerate(each):
        tensors |= {(row, k): v for k, v in G.theta.items()} | {(row, "phi", k): v for k, v in G.phi_loss.items()}
    sums = _summed(ranks, tensors, _share(batch), None, what).tensors
    L = L._replace(loss=sums["loss"])
    return L, [
        G._replace(
            loss=L.loss,
            theta={k: sums[row, k] for k in G.theta},
            phi_loss={k: sums[row, "phi", k] for k in G.phi_loss},
        )
        for row, G in enumerate(each)
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
    tensors: dict[Hashable, Tensor],
    share: tuple[float, bool],
    failed: Exception | None,
    what: str,
    flags: list[float] | None = None,
) -> _Sums:
    """Σ_r w_r of each tensor, over Σ_r w_r. Raises on all ranks where one failed."""
    weight, divides = share if failed is None else (0.0, False)
    beside = [weight * divides, float(failed is not None), *(flags or ())]
    total, counts = weighed(ranks, tensors, what, weight=weight, beside=beside)
    device = counts.device
    if at_once(device):
        if bool(counts[1] > 0):
            _raise(ranks, failed, what)
    elif failed is not None:  # the others do not look: a stall a step. They end with the group's timeout, and read why
        raise failed
    denominator = torch.where(counts[0] > 0, counts[0], torch.ones_like(counts[0]))
    divided = {k: v / denominator.to(v.dtype) for k, v in total.items()}
    return _Sums(divided, counts[2:], weight / denominator)


def _raise(ranks: Ranks, failed: Exception | None, what: str) -> NoReturn:
    """Raise what failed here, or tell where it failed. Called on all ranks."""
    words = everyones(ranks, None if failed is None else raised_by(failed), "what failed")
    if failed is not None:
        raise failed
    rank, word = next((rank, word) for rank, word in enumerate(words) if word is not None)
    raise ProcessError(f"{what}: rank {rank} of {ranks.size} of {ranks.use!r} raised {word}")
