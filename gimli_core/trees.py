"""Nested dicts, tuples and lists of tensors: what is in them.

What a tree is stands once, in `entries`; the one recursion over it is `folded`, and `nodes` is the one loop. Everything
else that goes through a tree, here and in the rest of the package, is a line or two on one of these.

A tree that a user may have built is taken apart as `entries` says. Where it must be the compiler's own order,
`torch.utils._pytree` is asked, to which a mapping of a foreign kind is one leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

__all__ = [
    "KeyPath",
    "Mark",
    "bare",
    "entries",
    "folded",
    "leaves",
    "mapped",
    "mapped_at",
    "named_tensors",
    "nbytes",
    "nodes",
    "path_text",
    "rebuilt",
    "tensors",
    "unmarked_node",
    "zipped",
    "zipped_at",
]

KeyPath = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Mark:
    """A value, and what its shape means; in a tree a node of one entry, whose key is the kind of the mark."""

    value: Any


def entries(tree: Any) -> Iterable[tuple[Any, Any]] | None:
    """(key, value) of what stands directly in a mapping, an `nn.ParameterDict`, a tuple, a list or a mark; None of
    anything else, which is a leaf, of whatever shape.
    """
    if isinstance(tree, (tuple, list)):  # first what is told fast: the others ask in Python
        return enumerate(tree)
    if type(tree) is Tensor or isinstance(tree, Tensor):
        return None
    if type(tree) is dict or isinstance(tree, (Mapping, nn.ParameterDict)):
        return tree.items()
    return ((type(tree), tree.value),) if isinstance(tree, Mark) else None


def folded(
    tree: Any,
    leaf: Callable[[KeyPath, Any], Any],
    node: Callable[[KeyPath, Any, dict[Any, Any]], Any],
    path: KeyPath = (),
) -> Any:
    """What `node` makes of a tree and of what it and `leaf` made of its entries. Tensors may have any shape.

    Args:
        leaf: `(path, leaf) -> result`.
        node: `(path, node, {key: result of its entry}) -> result`.

    >>> folded({"a": 1, "b": (2, 3)}, lambda path, x: x, lambda path, tree, results: sum(results.values()))
    6
    """
    inside = tree.items() if type(tree) is dict else entries(tree)
    if inside is None:
        return leaf(path, tree)
    # Most trees are dicts of tensors, told here without two calls a tensor: that takes half the time.
    results = {
        key: leaf((*path, key), value) if type(value) is Tensor else folded(value, leaf, node, (*path, key))
        for key, value in inside
    }
    return node(path, tree, results)


def rebuilt(path: KeyPath, tree: Any, results: dict[Any, Any]) -> Any:
    """A node of the kind of `tree` with other entries: of any mapping a dict."""
    if isinstance(tree, (tuple, list)):
        kind: Any = type(tree)
        return kind(*results.values()) if hasattr(kind, "_fields") else kind(results.values())
    return replace(tree, value=results[type(tree)]) if isinstance(tree, Mark) else results


def unmarked_node(path: KeyPath, tree: Any, results: dict[Any, Any]) -> Any:
    """As `rebuilt`, without the marks."""
    return results[type(tree)] if isinstance(tree, Mark) else rebuilt(path, tree, results)


def mapped_at(function: Callable[[KeyPath, Any], Any], tree: Any, path: KeyPath = ()) -> Any:
    """The tree with `function(path, leaf)` in the place of every leaf.

    >>> mapped_at(lambda path, x: f"{x} at {path}", {"a": [1]})
    {'a': ["1 at ('a', 0)"]}
    """
    return folded(tree, function, rebuilt, path)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with `function(leaf)` in the place of every leaf.

    >>> mapped(lambda x: 2 * x, {"a": 1, "b": (2, [3])})
    {'a': 2, 'b': (4, [6])}
    """
    return folded(tree, lambda _, x: function(x), rebuilt)


def zipped(function: Callable[..., Any], *trees: Any) -> Any:
    """One tree of several of one form: at each place what `function` makes of their leaves there.

    >>> zipped(lambda a, b: a + b, {"x": 1, "y": (2,)}, {"y": (20,), "x": 10})
    {'x': 11, 'y': (22,)}
    """
    return zipped_at(lambda _, *of_place: function(*of_place), *trees)


def zipped_at(function: Callable[..., Any], *trees: Any) -> Any:
    """As `zipped`, of `function(path, *leaves)`."""
    others = [dict(leaves(tree)) for tree in trees[1:]]
    return mapped_at(lambda path, x: function(path, x, *[of_path[path] for of_path in others]), trees[0])


def leaves(tree: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """(path, leaf) of every leaf, in order; what is empty has none.

    >>> leaves({"a": 1, "b": (2, {})})
    [(('a',), 1), (('b', 0), 2)]
    """
    all_of: list[tuple[KeyPath, Any]] = []
    folded(tree, lambda path, x: all_of.append((path, x)), lambda *_: None, path)
    return all_of


def nodes(tree: Any) -> Iterator[Any]:
    """The tree, and all that is in it, leaves and what is empty too, each before what it holds, in order."""
    ahead = [tree]
    while ahead:
        yield (node := ahead.pop())
        if (kind := type(node)) is tuple or kind is list:  # as `entries` has it, told faster of what batches mostly are
            ahead += node[::-1]
        elif kind is not Tensor and (inside := entries(node)) is not None:
            ahead += [value for _, value in inside][::-1]


def bare(path: KeyPath) -> KeyPath:
    """The path without the marks on it."""
    return tuple([key for key in path if not (isinstance(key, type) and issubclass(key, Mark))])


def path_text(path: KeyPath, name: str = "") -> str:
    """A path as one writes it in Python, marks left out.

    >>> path_text(("a", 0), "batch")
    "batch['a'][0]"
    """
    return name + "".join(f"[{key!r}]" for key in bare(path))


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a tree, in order, each with where it lies.

    >>> import torch
    >>> [(name, t.item()) for name, t in named_tensors({"a": torch.tensor(1), "b": (torch.tensor(2), "x")}, "batch")]
    [("batch['a']", 1), ("batch['b'][0]", 2)]
    """
    return ((path_text(path, name), leaf) for path, leaf in leaves(tree) if isinstance(leaf, Tensor))


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in a tree, in order.

    >>> import torch
    >>> [t.item() for t in tensors({"a": torch.tensor(1), "b": (torch.tensor(2), "x")})]
    [1, 2]
    """
    return (node for node in nodes(tree) if isinstance(node, Tensor))


def nbytes(tree: Any) -> int:
    """Bytes of all tensors in a tree."""
    return sum(t.nbytes for t in tensors(tree))
