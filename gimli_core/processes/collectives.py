"""What ranks send each other: dicts of tensors as one flat buffer, trees and plain values. Each message is counted.

Nothing here is differentiated: the sweep is explicit, and what it sums over ranks is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils import _pytree as pytree

from gimli_core.errors import ProcessError, first_line
from gimli_core.processes import words
from gimli_core.processes.flat_trees import flattened, rebuilt
from gimli_core.processes.mesh import Ranks

__all__ = [
    "Collective",
    "Weighed",
    "Weight",
    "all_gathered",
    "common_dtype",
    "counting",
    "divisor",
    "everyones",
    "everyones_tree",
    "exchanged",
    "numbers",
    "summed",
    "weighed",
]

Answer = TypeVar("Answer")
Name = TypeVar("Name", bound=Hashable)


class Collective(NamedTuple):
    """One collective operation that this process took part in."""

    operation: str  # "all_reduce", "all_gather", "all_to_all" or "all_gather_object"
    use: str  # of its ranks
    what: str  # what was sent, and for which line
    nbytes: int  # of what this rank put in


_COUNTS: list[list[Collective]] = []


@contextmanager
def counting() -> Iterator[list[Collective]]:
    """The collectives of this process from here on, in their order."""
    collectives: list[Collective] = []
    _COUNTS.append(collectives)
    try:
        yield collectives
    finally:
        _COUNTS.remove(collectives)


def summed(ranks: Ranks, tensors: Mapping[Name, Tensor], what: str) -> dict[Name, Tensor]:
    """Σ over the ranks of each tensor, of any shape: the same bits on all. One all_reduce of all tensors in a row."""
    return weighed(ranks, tensors, what).sums if tensors else {}


class Weight(NamedTuple):
    """What a rank's numbers count for in a sum."""

    value: float  # w_r; 0: for nothing, nan included
    divides: bool = False  # whether the sum is divided by the sum of such


ONE = Weight(1.0)


class Weighed(NamedTuple):
    """Σ_r w_r x_r, over Σ_r w_r of the ranks whose weight divides, if there are some."""

    sums: dict[Any, Tensor]
    counts: Tensor  # Σ of the numbers that went beside them
    factor: Tensor  # by which this rank's tensors entered


def weighed(
    ranks: Ranks, tensors: Mapping[Name, Tensor], what: str, weight: Weight = ONE, beside: Sequence[float] = ()
) -> Weighed:
    """Each tensor summed by weight, and the numbers `beside`: the same bits on all ranks.

    One all_reduce of all of them in a row, in float32 at least.
    """
    dtype = common_dtype(tensors)
    flats = [t.detach().reshape(-1).to(dtype) for t in tensors.values()]
    device = flats[0].device if flats else torch.device("cpu")
    flat = torch.cat([*flats, numbers((weight.value * weight.divides, *beside), dtype, device)])
    of_tensors = flat[: len(flat) - 1 - len(beside)]
    if weight.value == 0:
        of_tensors.zero_()
    elif weight.value != 1:
        of_tensors.mul_(weight.value)
    _executed("all_reduce", ranks, what, flat.nbytes, lambda: distributed.all_reduce(flat, group=ranks.group))
    denominator = divisor(flat[len(of_tensors)])
    of_tensors.div_(denominator)
    parts = of_tensors.split([t.numel() for t in tensors.values()])
    sums = {k: part.reshape(t.shape).to(t.dtype) for (k, t), part in zip(tensors.items(), parts, strict=True)}
    return Weighed(sums, flat[len(of_tensors) + 1 :], weight.value / denominator)


def divisor(total: Tensor) -> Tensor:
    """Σ_r w_r, a scalar; 1 where no rank's weight divides."""
    return torch.where(total > 0, total, torch.ones_like(total))


def exchanged(ranks: Ranks, chunks: Tensor, what: str) -> Tensor:
    """Of the chunks `[W, c]` of every rank the one that is this rank's, in the order of the ranks, [W, c].

    One all_to_all. What is then summed here has the bytes of a reduce_scatter, gloo's own of which is an all_reduce;
    and ranks that sum the same numbers have the same bits, whatever the transport.
    """
    every = torch.empty_like(chunks)
    call = partial(distributed.all_to_all_single, every, chunks, group=ranks.group)
    _executed("all_to_all", ranks, what, chunks.nbytes, call)
    return every


def all_gathered(ranks: Ranks, flat: Tensor, what: str) -> Tensor:
    """The tensors `[n]` of all ranks, which are of one shape and dtype, in rank order, [W, n]. One all_gather."""
    flat = flat.contiguous()
    every = flat.new_empty(ranks.size * flat.numel())
    call = partial(distributed.all_gather_single, every, flat, group=ranks.group)
    _executed("all_gather", ranks, what, flat.nbytes, call)
    return every.view(ranks.size, -1)


def everyones(ranks: Ranks, value: Any, what: str) -> list[Any]:
    """The plain values of all ranks, in rank order: for what is sent once a call, since it is pickled.

    A tensor in them that is a part of a larger one goes without the rest, which pickle would send too.
    """
    every: list[Any] = [None] * ranks.size
    value = pytree.tree_map_only(Tensor, _alone, value)
    _executed(
        "all_gather_object", ranks, what, 0, lambda: distributed.all_gather_object(every, value, group=ranks.group)
    )
    return every


def _alone(x: Tensor) -> Tensor:
    """The tensor, in a storage of its own size."""
    dense = x.layout == torch.strided and not x.is_nested
    return x.clone() if dense and x.untyped_storage().nbytes() > x.nbytes else x


def everyones_tree(ranks: Ranks, tree: Any, device: torch.device, what: str) -> list[Any]:
    """The trees of all ranks, in rank order, to the bit; they need not be of one form.

    What is no tensor is pickled and goes ahead; the tensors follow in one all_gather of bytes, of the longest's length.
    """
    plain, flat = flattened(tree, device)
    every = everyones(ranks, (plain, flat.numel()), what)
    longest = max(length for _, length in every)
    if longest == 0:
        return [rebuilt(one, flat) for one, _ in every]
    padded = torch.cat([flat, flat.new_zeros(longest - flat.numel())])
    return [rebuilt(one, sent) for (one, _), sent in zip(every, all_gathered(ranks, padded, what), strict=True)]


@lru_cache(maxsize=64)
def numbers(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of numbers, [n], made once, and on its device: to bring them there would stall it."""
    row = torch.zeros(len(values), dtype=dtype, device=device)
    for i, value in enumerate(values):
        if value != 0:
            row[i].fill_(value)
    return row


def common_dtype(tensors: Mapping[Any, Tensor]) -> torch.dtype:
    """That all tensors, of any shape, can be summed in: float32 at least."""
    return reduce(torch.promote_types, (t.dtype for t in tensors.values()), torch.float32)


def _executed(operation: str, ranks: Ranks, what: str, nbytes: int, call: Callable[[], Answer]) -> Answer:
    """Call, counted. Raises ProcessError where a rank does not take part."""
    for collectives in _COUNTS:
        collectives.append(Collective(operation, ranks.use, what, nbytes))
    try:
        return call()
    except RuntimeError as error:
        words.leave(ranks, f"was left without an answer too, at {what}")
        raise ProcessError(
            f"{what}: expected all {ranks.size} ranks of {ranks.use!r} to take part in {operation}; rank {ranks.rank} "
            f"was left without an answer: {words.others(ranks)} ({first_line(error)}). "
            "With resume= a run that is started again goes on."
        ) from error
