"""Nested dicts, tuples and lists of tensors: what is in them, and what they look like without values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Outline", "cloned", "fits", "lies_alike", "named_tensors", "nbytes", "outline", "tensors"]


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested mappings, tuples and lists, in order, each with where it lies.

    >>> [(name, t.item()) for name, t in named_tensors({"a": torch.tensor(1), "b": (torch.tensor(2), "x")}, "batch")]
    [("batch['a']", 1), ("batch['b'][0]", 2)]
    """
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, (Mapping, tuple, list)):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from named_tensors(value, f"{name}[{key!r}]")


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, tuples and lists, in order.

    >>> [t.item() for t in tensors({"a": torch.tensor(1), "b": (torch.tensor(2), "x")})]
    [1, 2]
    """
    return (tensor for _, tensor in named_tensors(tree))


def nbytes(tree: Any) -> int:
    """Bytes of all tensors in a tree."""
    return sum(t.nbytes for t in tensors(tree))


def cloned(tree: Any) -> Any:
    """Nested dicts with a copy of every tensor."""
    return tree.clone() if isinstance(tree, Tensor) else {name: cloned(value) for name, value in tree.items()}


class Outline(NamedTuple):
    """What a tensor looks like, without its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]


def outline(tree: Any) -> Any:
    """The tree with an outline for every tensor."""
    if isinstance(tree, Tensor):
        return Outline(tree.shape, tree.dtype, tree.device, tree.stride())
    if isinstance(tree, dict):
        return {k: outline(v) for k, v in tree.items()}
    return [outline(v) for v in tree] if isinstance(tree, (tuple, list)) else tree


def fits(tree: Any, like: Any) -> bool:
    """Whether a tree has this outline, strides aside.

    >>> fits((torch.ones(2), 1), outline((torch.zeros(2), 1))), fits((torch.ones(2), 1), outline((torch.zeros(2), 2)))
    (True, False)
    """
    if isinstance(tree, Tensor):
        return isinstance(like, Outline) and (tree.shape, tree.dtype, tree.device) == like[:3]
    if isinstance(tree, dict):
        return isinstance(like, dict) and list(tree) == list(like) and all(fits(v, like[k]) for k, v in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(like) is list and len(tree) == len(like) and all(map(fits, tree, like))
    return tree is like or (isinstance(tree, (bool, int, float, str)) and type(tree) is type(like) and tree == like)


def lies_alike(tree: Any, like: Any) -> bool:
    """Whether the tensors of a tree that fits an outline have its strides too."""
    if isinstance(tree, Tensor):
        return bool(tree.stride() == like.stride)
    if isinstance(tree, dict):
        return all(lies_alike(v, like[k]) for k, v in tree.items())
    return all(map(lies_alike, tree, like)) if isinstance(tree, (tuple, list)) else True
