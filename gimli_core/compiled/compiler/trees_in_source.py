"""Nested dicts, tuples and lists of tensors, taken apart and put together many times a second.

`torch.utils._pytree` finds its way anew at every call; here the way is found once and written down as a Python
expression, as `collections.namedtuple` does for its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["builder", "taker"]


def taker(tree: Any) -> Callable[[Any], list[Any]]:
    """A function that lists the leaves of trees like this one, in order.

    >>> taker({"a": 1, "b": (2, [3])})({"a": "x", "b": ("y", ["z"])})
    ['x', 'y', 'z']
    """
    keys: dict[str, Any] = {}
    function: Callable[[Any], list[Any]] = eval(f"lambda tree: [{', '.join(paths(tree, 'tree', keys))}]", keys)
    return function


def key_in_source(key: Any, keys: dict[str, Any]) -> str:
    """A key as an expression: text and whole numbers as they are, any other by a name that `keys` gives it.

    What a key's own `repr` says is never evaluated.
    """
    if type(key) in (str, int):
        return repr(key)
    keys[name := f"key{len(keys)}"] = key
    return name


def paths(tree: Any, at: str, keys: dict[str, Any]) -> Iterator[str]:
    """The expressions that reach the leaves."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (tuple, list)) else None
    if entries is None:
        yield at
        return
    for key, value in entries:
        yield from paths(value, f"{at}[{key_in_source(key, keys)}]", keys)


def builder(tree: Any) -> Callable[[Sequence[Any]], Any]:
    """A function that puts leaves, in order, into a tree like this one.

    >>> builder({"a": 1, "b": (2, [3])})(["x", "y", "z"])
    {'a': 'x', 'b': ('y', ['z'])}
    """
    kinds: dict[str, Any] = {}
    count = iter(range(10**9))

    def written(part: Any) -> str:
        if isinstance(part, dict):
            return (
                "{" + ", ".join(f"{key_in_source(key, kinds)}: {written(value)}" for key, value in part.items()) + "}"
            )
        inner = "".join(f"{written(value)}, " for value in part) if isinstance(part, (tuple, list)) else ""
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            kinds[f"kind{len(kinds)}"] = type(part)
            return f"kind{len(kinds) - 1}({inner})"
        if isinstance(part, (tuple, list)):
            return f"({inner})" if isinstance(part, tuple) else f"[{inner}]"
        return f"leaves[{next(count)}]"

    function: Callable[[Sequence[Any]], Any] = eval(f"lambda leaves: {written(tree)}", kinds)
    return function
