"""Nested dicts, tuples and lists of tensors, taken apart and put together many times a second.

`torch.utils._pytree` finds its way anew at every call; here the way is found once and written down as a Python
expression, as `collections.namedtuple` does for its fields.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["builder", "taker"]


def taker(tree: Any) -> Callable[[Any], list[Any]]:
    """A function that lists the leaves of trees like this one, in pytree's order.

    >>> taker({"a": 1, "b": (2, [3])})({"a": "x", "b": ("y", ["z"])})
    ['x', 'y', 'z']
    """
    names: dict[str, Any] = {}
    reached = [_reached(path, names) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    function: Callable[[Any], list[Any]] = eval(f"lambda tree: [{', '.join(reached)}]", names)
    return function


def _reached(path: Sequence[Any], names: dict[str, Any]) -> str:
    """The expression that reaches the leaf at one of pytree's paths."""
    source = "tree"
    for key in path:
        if isinstance(key, pytree.GetAttrKey):  # of a named tuple
            source += f".{key.name}"
        else:
            source += f"[{key_in_source(key.idx if isinstance(key, pytree.SequenceKey) else key.key, names)}]"
    return source


def key_in_source(key: Any, keys: dict[str, Any]) -> str:
    """A key as an expression: text and whole numbers as they are, any other by a name that `keys` gives it.

    What a key's own `repr` says is never evaluated.
    """
    if type(key) in (str, int):
        return repr(key)
    keys[name := f"key{len(keys)}"] = key
    return name


def builder(tree: Any) -> Callable[[Sequence[Any]], Any]:
    """A function that puts leaves, in pytree's order, into a tree like this one.

    >>> builder({"a": 1, "b": (2, [3])})(["x", "y", "z"])
    {'a': 'x', 'b': ('y', ['z'])}
    """
    names: dict[str, Any] = {}
    count = iter(range(10**9))

    def named(value: Any) -> str:
        names[name := f"name{len(names)}"] = value
        return name

    def written(spec: pytree.TreeSpec) -> str:
        if spec.is_leaf():
            return f"leaves[{next(count)}]"
        inner = [written(child) for child in spec.children()]
        if spec.type is dict:
            keys = [key_in_source(key, names) for key in spec.context]
            return "{" + "".join(f"{key}: {x}, " for key, x in zip(keys, inner, strict=True)) + "}"
        listed = "".join(f"{x}, " for x in inner)
        if spec.type is tuple or spec.type is list:
            return f"({listed})" if spec.type is tuple else f"[{listed}]"
        if spec.type is namedtuple:
            return f"{named(spec.context)}({listed})"
        of_kind = pytree.SUPPORTED_NODES[spec.type].unflatten_fn
        return f"{named(of_kind)}([{listed}], {named(spec.context)})"

    source = written(pytree.tree_structure(tree))
    function: Callable[[Sequence[Any]], Any] = eval(f"lambda leaves: {source}", names)
    return function
