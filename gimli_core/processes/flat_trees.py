"""A tree of tensors as its bytes in a row, and what else is in it; and back, to the bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["flattened", "rebuilt"]

ALIGNED = 16  # bytes, so that a view of every dtype may begin where a tensor does


class _Dense(NamedTuple):
    """Where a tensor's bytes lie."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Sparse(NamedTuple):
    """A coalesced tensor in coordinates."""

    indices: _Dense
    values: _Dense
    shape: tuple[int, ...]


def flattened(tree: Any, device: torch.device) -> tuple[Any, Tensor]:
    """(the tree with a place for every tensor, the bytes of all of them, [bytes])."""
    parts: list[Tensor] = []
    length = 0

    def dense(t: Tensor) -> _Dense:
        nonlocal length
        start, bytes_of = length, t.detach().to(device).contiguous().reshape(-1).view(torch.uint8)
        gap = -bytes_of.numel() % ALIGNED
        parts.extend((bytes_of, bytes_of.new_zeros(gap)))
        length += bytes_of.numel() + gap
        return _Dense(start, tuple(t.shape), t.dtype)

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.layout != torch.sparse_coo:
            return dense(leaf)
        leaf = leaf.coalesce()
        return _Sparse(dense(leaf.indices()), dense(leaf.values()), tuple(leaf.shape))

    plain = pytree.tree_map(place, tree)
    return plain, torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=device)


def rebuilt(plain: Any, flat: Tensor) -> Any:
    """The tree that `flattened` took apart to `flat`, [bytes].

    Its tensors lie on the device of the bytes, each in memory of its own.
    """

    def dense(at: _Dense) -> Tensor:
        size = torch.Size(at.shape).numel() * at.dtype.itemsize
        return flat[at.start : at.start + size].clone().view(at.dtype).reshape(at.shape)

    def tensor(place: Any) -> Any:
        if isinstance(place, _Dense):
            return dense(place)
        if isinstance(place, _Sparse):
            return torch.sparse_coo_tensor(
                dense(place.indices), dense(place.values), place.shape, is_coalesced=True, check_invariants=False
            )
        return place

    return pytree.tree_map(tensor, plain, is_leaf=lambda node: isinstance(node, (_Dense, _Sparse)))
