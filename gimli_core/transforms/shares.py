"""A rank's part of a batch, with what it counts for: one batch over processes, of which each sees its own part.

    ell_j = Σ_r w_r ell(theta_j, phi_loss, part of rank r) / Σ_r w_r

by default with w_r the number of examples in the part; of a loss that is a sum without the denominator. A weight comes
with the batch, so that it is there by whatever way a batch comes: replayed, tried, or as the parts of a rank's part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.derivatives.micro_batches import MicroBatches, examples
from gimli_core.errors import unexpected
from gimli_core.notation import Loss, Tensors
from gimli_core.problem import Problem

__all__ = ["Share", "of_shares", "share_of", "shared", "unweighed", "whole_batch"]


WHAT = "a rank's part of a batch"
WEIGH = 'mesh="data" spreads examples over ranks; what a part without them counts for says gimli.Share(batch, weight).'


class Weighed(NamedTuple):
    """A part as the losses of `of_shares` take it."""

    batch: Any
    weight: float
    divides: bool


class Share(Weighed):
    """A rank's part of a batch, and what it counts for: `train_batches` and `val_batch` may hold such beside
    `mesh="data"`.

    Args:
        batch: what the loss is called with.
        weight: w_r >= 0, the denominator of the loss on this part, such as its count of labelled tokens. Without a
            `Share` it is the number of examples in the leading dimension (behind the tasks', if there are any).
        divides: False for a loss that is a sum over examples: then L = Σ_r w_r L_r, with the weight 1 by default.

    Raises:
        ArgumentError: a weight that is negative or not finite.

    >>> import torch, gimli_core as gimli
    >>> gimli.Share(torch.zeros(2), weight=5).weight
    5.0
    """

    def __new__(cls, batch: Any, weight: float = 1.0, divides: bool = True) -> Share:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            do = "It is the denominator of the loss on this part."
            raise unexpected("Share(weight)", "a finite number >= 0", repr(weight), do)
        return super().__new__(cls, batch, float(weight), divides)


def share_of(batch: Any, dim: int) -> tuple[float, bool]:
    """(w_r, whether L is divided by the sum of them) of a rank's part, as it was given. Raises ArgumentError.

    Args:
        dim: the dimension of the examples.
    """
    if isinstance(batch, Share):
        return batch.weight, batch.divides
    if isinstance(batch, MicroBatches):
        if all(w == 1 for w in batch.weights or (0.0,)):
            return 1.0, False
        return float(sum(examples(part, dim, WHAT, WEIGH) for part in batch.parts)), True
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(batch)):
        return 1.0, True
    count = examples(batch, dim, WHAT, WEIGH)
    if count == 0:
        do = "Give every rank an example, or start fewer ranks."
        raise unexpected(WHAT, "at least one example", "none", do)
    return float(count), True


def shared(batch: Any, weight: float, divides: bool) -> Any:
    """The batch with its weight; of micro-batches every part has that of all of them."""
    if isinstance(batch, MicroBatches):
        return batch._replace(parts=tuple(Weighed(part, weight, divides) for part in batch.parts))
    return Weighed(batch, weight, divides)


def unweighed(batch: Any) -> Any:
    """A part as it was given, without what it counts for."""
    return batch.batch if isinstance(batch, Weighed) else batch


def whole_batch(batches: Callable[[int], Any]) -> Callable[[int], Any]:
    """batch_j without its weight."""

    def batch(j: int) -> Any:
        share = batches(j)
        return share.batch if isinstance(share, Share) else share

    return batch


def of_shares(problem: Problem) -> Problem:
    """The problem whose losses take such batches. Made once a problem, so that what is known of it is kept."""
    forms = problem.memo.forms
    if "shares" not in forms:
        losses = (_OfShare(problem.train_loss), _OfShare(problem.val_loss))
        forms["shares"] = Problem(*losses, problem.optimizer, problem.modules)
    return forms["shares"]


class _OfShare:
    """A loss of (theta, phi_loss, batch) as one of (theta, phi_loss, share)."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        return self.loss(theta, phi_loss, unweighed(batch))
