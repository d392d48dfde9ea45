"""Nested dicts, tuples and lists of tensors, taken apart and put together many times a second.

`torch.utils._pytree` finds its way anew at every call; here the way is found once and written down as a Python
expression, as `collections.namedtuple` does for its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["builder", "fits", "lies_alike", "outline", "taker"]


def taker(tree: Any) -> Callable[[Any], list[Any]]:
    """A function that lists the leaves of trees like this one, in order.

    >>> taker({"a": 1, "b": (2, [3])})({"a": "x", "b": ("y", ["z"])})
    ['x', 'y', 'z']
    """
    function: Callable[[Any], list[Any]] = eval(f"lambda tree: [{', '.join(paths(tree, 'tree'))}]")
    return function


def paths(tree: Any, at: str) -> Iterator[str]:
    """The expressions that reach the leaves."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (tuple, list)) else None
    if entries is None:
        yield at
        return
    for key, value in entries:
        yield from paths(value, f"{at}[{key!r}]")


def builder(tree: Any) -> Callable[[Sequence[Any]], Any]:
    """A function that puts leaves, in order, into a tree like this one.

    >>> builder({"a": 1, "b": (2, [3])})(["x", "y", "z"])
    {'a': 'x', 'b': ('y', ['z'])}
    """
    kinds: dict[str, Any] = {}
    count = iter(range(10**9))

    def written(part: Any) -> str:
        if isinstance(part, dict):
            return "{" + ", ".join(f"{key!r}: {written(value)}" for key, value in part.items()) + "}"
        inner = "".join(f"{written(value)}, " for value in part) if isinstance(part, (tuple, list)) else ""
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            kinds[f"kind{len(kinds)}"] = type(part)
            return f"kind{len(kinds) - 1}({inner})"
        if isinstance(part, (tuple, list)):
            return f"({inner})" if isinstance(part, tuple) else f"[{inner}]"
        return f"leaves[{next(count)}]"

    function: Callable[[Sequence[Any]], Any] = eval(f"lambda leaves: {written(tree)}", kinds)
    return function


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

    >>> import torch
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
