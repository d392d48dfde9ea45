"""A batch in parts, of which the inner loss is the weighted sum: one part's graph at a time.

    ell_j        = Σ_i w_i ell(theta_j, phi_loss, part_i)                       what the inner loss then is
    G_j          = Σ_i w_i grad_theta ell(theta_j, phi_loss, part_i)            # line 5
    V_j Hessian  = Σ_i w_i V_j Hessian of part i, and V_j mixed likewise        # lines 13 and 14, with the same V_j

The parts are evaluated in their order, each after the other, so each meets the random numbers that it met before
wherever the first one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.derivatives.beside_loss import check_alike
from gimli_core.errors import kind_of, unexpected

__all__ = ["MicroBatches", "dim_of_examples", "each", "examples", "of_parts", "split", "together", "weighed"]

LABEL = "MicroBatches(parts)"
PARTS = "Build the parts yourself: gimli.MicroBatches([…], weights=[…])."


class _Parts(NamedTuple):
    parts: tuple[Any, ...]
    weights: tuple[float, ...] | None


class MicroBatches(_Parts):
    """A batch of one inner step in parts, to be held in memory one at a time; `train_batches` may hold such.

        ell_j = Σ_i w_i train_loss(theta_j, phi_loss, part_i)

    Exact to rounding for a loss that is a mean over examples (by default w_i = n_i / n, of examples in the leading
    dimension; behind the tasks', if there are any), or a sum (give ones). Another denominator, such as a count of
    labelled tokens, is yours to say. A loss that normalises by its whole batch, as BatchNorm does, is none of these:
    the first step is tried, and the call refused, unless `check=False` says that the sum itself is meant.

    Args:
        parts: batches of one structure, none of them empty.
        weights: w_i; they sum to 1, or are all 1.

    Raises:
        ArgumentError: parts of unequal structure, none, an empty one; weights of another number, not finite, or that
            neither sum to 1 nor are all 1.

    Cost: the memory of one part in place of the whole; a step takes 12F in place of 9F where graphs would be kept
    (`RetainGraphs` then keeps points and G_j), and 15F in place of 12F where G_j is computed again.

    >>> import torch, gimli_core as gimli
    >>> gimli.MicroBatches([torch.zeros(2, 3), torch.zeros(1, 3)], weights=[0.5, 0.5]).weights
    (0.5, 0.5)
    """

    def __new__(cls, parts: Sequence[Any], weights: Sequence[float] | None = None) -> MicroBatches:
        if not isinstance(parts, (list, tuple)) or not parts:
            actual = kind_of(parts) if not isinstance(parts, (list, tuple)) else "none"
            raise unexpected(LABEL, "a list of one batch or more", actual, "Give the parts in a list.")
        structures = [pytree.tree_structure(part) for part in parts]
        for i, structure in enumerate(structures):
            if structure != structures[0]:
                expected, actual = f"parts of one structure, as the first: {structures[0]}", f"part {i}: {structure}"
                raise unexpected(LABEL, expected, actual, "Give every part the same keys.")
        for i, part in enumerate(parts):
            if any(isinstance(x, Tensor) and x.numel() == 0 and 0 in x.shape[:1] for x in pytree.tree_leaves(part)):
                raise unexpected(LABEL, "parts with examples", f"part {i}, which is empty", "Leave it out.")
        return super().__new__(cls, tuple(parts), _checked(weights, len(parts)))


def _checked(weights: Any, count: int) -> tuple[float, ...] | None:
    if weights is None:
        return None
    try:
        numbers = tuple(float(w) for w in weights)
    except (TypeError, ValueError):
        numbers = ()
    total, ones = sum(numbers), all(w == 1 for w in numbers)
    if len(numbers) != count or not (ones or abs(total - 1) <= 1e-6) or not all(map(math.isfinite, numbers)):
        expected = f"{count} numbers that sum to 1 (the loss is a mean), or ones (it is a sum)"
        actual = f"{len(numbers)} with the sum {total:g}"
        do = "n_i / n, of what the loss divides by, is the weight of a part; by default of its examples."
        raise unexpected("MicroBatches(weights)", expected, actual, do)
    return numbers


def dim_of_examples(tasks: object) -> int:
    """The dimension of the examples in a batch's tensors: the leading one, or the one behind the tasks'."""
    return 0 if tasks is None else 1


def weighed(batch: MicroBatches, dim: int) -> MicroBatches:
    """The parts with weights; by default the shares of their examples, counted in dimension `dim` of a tensor."""
    if batch.weights is not None:
        return batch
    counts = [examples(part, dim) for part in batch.parts]
    return MicroBatches(batch.parts, [n / sum(counts) for n in counts])


def split(batch: Any, count: int, dim: int) -> MicroBatches:
    """A batch in `count` parts along dimension `dim` of each of its tensors. Raises ArgumentError."""
    if isinstance(batch, MicroBatches):
        actual, do = "a batch that is MicroBatches already", "Give one of the two."
        raise unexpected("micro_batches", "None beside MicroBatches in train_batches", actual, do)
    n = examples(batch, dim)
    if n < count:
        actual, do = f"{count} of a batch of {n}", "Lower it."
        raise unexpected("micro_batches", "at most one for each example", actual, do)
    leaves, structure = pytree.tree_flatten(batch)
    cut = [x.tensor_split(count, dim) if isinstance(x, Tensor) else (x,) * count for x in leaves]
    return MicroBatches([pytree.tree_unflatten(part, structure) for part in zip(*cut, strict=True)])


def examples(batch: Any, dim: int, what: str = "a batch in micro-batches", do: str = PARTS) -> int:
    """How many examples a batch holds. Raises ArgumentError, which calls it `what`, where its tensors do not agree."""
    tensors = [x for x in pytree.tree_leaves(batch) if isinstance(x, Tensor)]
    counts = {x.shape[dim] if x.ndim > dim else -1 for x in tensors}
    if len(counts) != 1 or -1 in counts:
        shapes = [list(x.shape) for x in tensors]
        expected, actual = f"tensors with one number of examples, in dimension {dim}", f"shapes {shapes}"
        raise unexpected(what, expected, actual, do)
    return counts.pop()


def together(batch: MicroBatches, dim: int) -> Any:
    """The parts as one batch; None where their tensors cannot be joined along `dim`, or what is none differs."""
    joined = []
    flat = [pytree.tree_flatten(part) for part in batch.parts]
    for leaves in zip(*(leaves for leaves, _ in flat), strict=True):
        first = leaves[0]
        if isinstance(first, Tensor):
            if len({(x.ndim, *x.shape[:dim], *x.shape[dim + 1 :]) for x in leaves}) > 1 or first.ndim <= dim:
                return None
            joined.append(torch.cat(leaves, dim))
        elif all(x is first or x == first for x in leaves):
            joined.append(first)
        else:
            return None
    return pytree.tree_unflatten(joined, flat[0][1])


def each(batch: Any) -> Iterator[tuple[float, Any]]:
    """(weight, part) of a batch; one that is not in parts is one."""
    if not isinstance(batch, MicroBatches):
        yield 1.0, batch
        return
    assert batch.weights is not None
    yield from zip(batch.weights, batch.parts, strict=True)


def of_parts(aux: Sequence[Any], name: str) -> Any:
    """What a loss returned beside the losses of the parts, every tensor with a leading dimension of them."""
    for i, one in enumerate(aux):
        check_alike(one, aux[0], f"the aux of {name}", f"part {i}")
    return None if aux[0] is None else pytree.tree_map(lambda *leaves: torch.stack(leaves), *aux)
