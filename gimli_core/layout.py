"""How tensors lie in memory: kernels sum in that order, so the last bits depend on it.

What a run starts from and every gradient lies `dense`, and a copy of it lies as it does: a step that is replayed from a
copy has the same bits. What is expanded, as weights over tasks are, has no memory of its own, and stays so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gimli_core.trees import mapped

__all__ = ["cloned", "dense", "narrowed", "order_in_memory"]


def order_in_memory(t: Tensor) -> list[int]:
    """The dimensions of a tensor of any shape, from the one whose elements lie farthest apart."""
    strides = t.stride()
    return sorted(range(t.ndim), key=lambda d: -strides[d])


def narrowed(t: Tensor) -> Tensor:
    """A tensor of any shape, with one entry where several are the same memory: `expand` is the way back."""
    for d in _expanded(t):
        t = t.narrow(d, 0, 1)
    return t


def cloned(tree: Any) -> Any:
    """The tree with a copy of every dense tensor, which lies in memory as that does."""
    return mapped(lambda t: narrowed(t).clone().expand(t.shape) if _expanded(t) else t.clone(), tree)


def dense(t: Tensor) -> Tensor:
    """A tensor of any shape whose elements lie side by side, or one expanded from such: a copy where there are gaps.

    >>> import torch
    >>> x = torch.ones(4, 6)
    >>> [dense(y) is y for y in (x, x.t(), x[:1].expand(4, 6), x[:, ::2])]
    [True, True, True, False]
    """
    if t.is_contiguous():
        return t
    each = narrowed(t)
    return t if each.permute(order_in_memory(each)).is_contiguous() else each.contiguous().expand(t.shape)


def _expanded(t: Tensor) -> Sequence[int]:
    """The dimensions along which a tensor has several entries in one place."""
    strides = t.stride()
    return [d for d, n in enumerate(t.shape) if n > 1 and strides[d] == 0] if 0 in strides else ()
