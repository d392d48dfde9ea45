"""Nested dicts, tuples and lists of tensors, taken apart and put together many times a second.

`torch.utils._pytree` finds its way anew at every call; here the way is found once and written down as a Python
expression, as `collections.namedtuple` does for its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from gimli_core.trees import KeyPath, folded

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
    """A function that puts leaves, in order, into a tree like this one.

    >>> builder({"a": 1, "b": (2, [3])})(["x", "y", "z"])
    {'a': 'x', 'b': ('y', ['z'])}
    """
    kinds: dict[str, Any] = {}
    count = iter(range(10**9))

    def written(path: KeyPath, part: Any, results: dict[Any, str]) -> str:
        if isinstance(part, dict):
            return "{" + "".join(f"{key_in_source(key, kinds)}: {text}, " for key, text in results.items()) + "}"
        inner = "".join(f"{text}, " for text in results.values())
        if hasattr(part, "_fields"):
            kinds[name := f"kind{len(kinds)}"] = type(part)
            return f"{name}({inner})"
        return f"({inner})" if isinstance(part, tuple) else f"[{inner}]"

    source = folded(tree, lambda path, leaf: f"leaves[{next(count)}]", written)
    function: Callable[[Sequence[Any]], Any] = eval(f"lambda leaves: {source}", kinds)
    return function
