"""What nested dicts, tuples and lists of tensors look like without values, and what was found out for those alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from gimli_core.trees import nodes

__all__ = ["ByOutline", "Outline", "fits", "lies_alike", "outline"]

V = TypeVar("V")


class Outline(NamedTuple):
    """What a tensor looks like, without its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]


class Node(tuple[Any, ...]):
    """The kind of a mapping and its keys in order, or the kind of a tuple or a list and how many entries it has: a loss
    may ask which kind it is, and what is compiled takes each apart in a way of its own."""


# What never changes, and is what it says: two of one kind that are equal are the same. Of anything else only the object
# itself is: what it is equal to may not be all that a loss reads of it.
VALUES = (
    *(bool, int, float, complex, str, bytes, slice, range),
    *(Node, np.generic, np.dtype, torch.dtype, torch.device, torch.layout, torch.memory_format),
)


def outline(tree: Any) -> list[Any]:
    """What a tree looks like: of each node an outline (a tensor), its kind and names or length, or the leaf itself."""
    return [Outline(x.shape, x.dtype, x.device, x.stride()) if isinstance(x, Tensor) else _look(x) for x in nodes(tree)]


def fits(tree: Any, like: list[Any]) -> bool:
    """Whether a tree has this outline, strides aside.

    >>> fits((torch.ones(2), 1), outline((torch.zeros(2), 1))), fits((torch.ones(2), 1), outline((torch.zeros(2), 2)))
    (True, False)
    """
    expected = iter(like)
    for x in nodes(tree):
        look = next(expected, expected)  # of a tree with less in it: something that nothing is equal to
        if type(x) is Tensor or isinstance(x, Tensor):
            if type(look) is not Outline or x.shape != look.shape or x.dtype != look.dtype or x.device != look.device:
                return False
        elif not _same(_look(x), look):
            return False
    return next(expected, expected) is expected


def lies_alike(tree: Any, like: list[Any]) -> bool:
    """Whether the tensors of a tree that fits an outline have its strides too."""
    return all(x.stride() == look.stride for x, look in zip(nodes(tree), like, strict=True) if isinstance(x, Tensor))


class ByOutline(Generic[V]):
    """What was found out for trees, each for all that have its outline: the latest `LOOKS` of them.

    Threads may share one: an entry that another thread puts in meanwhile may be lost, and is found out once more.

    >>> counts = ByOutline[int]()
    >>> counts.put((torch.ones(2), "x"), 3)
    >>> counts.get((torch.zeros(2), "x")), counts.get((torch.zeros(5), "x"))
    (3, None)
    """

    LOOKS = 64

    def __init__(self) -> None:
        self._entries: list[tuple[list[Any], V]] = []

    def get(self, tree: Any) -> V | None:
        """What was put in for a tree that looked like this one; None if nothing was."""
        return next((value for like, value in reversed(self._entries) if fits(tree, like)), None)

    def put(self, tree: Any, value: V) -> None:
        self._entries = [*self._entries[1 - self.LOOKS :], (outline(tree), value)]

    def __len__(self) -> int:
        return len(self._entries)


def _look(x: Any) -> Any:
    """What is no tensor: a mapping by its names, a tuple or a list by its length, a leaf by itself."""
    if isinstance(x, (tuple, list)):
        return Node((type(x), len(x)))
    return Node((type(x), *x)) if type(x) is dict or isinstance(x, Mapping) else x


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) is np.ndarray:
        return a.dtype == b.dtype and np.array_equal(a, b)
    return isinstance(a, VALUES) and bool(a == b or (a != a and b != b))  # as NaN
