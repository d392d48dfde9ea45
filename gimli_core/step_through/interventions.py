"""Values that a reader puts in place of the engine's while it stands at a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from gimli_core.errors import listing, unexpected
from gimli_core.trees import KeyPath, folded, path_text, rebuilt

__all__ = ["CHANGEABLE", "Intervention", "merged"]

# What the engine reads back when it goes on; the other values are shown only.
CHANGEABLE = {5: ("G",), 6: ("theta", "s"), 9: ("B", "S"), 11: ("V",), 12: ("A_opt",), 13: ("A_loss",), 14: ("B", "S")}


class Intervention(NamedTuple):
    """A value that the caller put in place of the engine's."""

    line: int
    j: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} changed at line {self.line} of step {self.j}"


def merged(old: Any, new: Any, path: str) -> Any:
    """`old` with the entries of `new` in their places; the forms must agree."""

    def leaf(at: KeyPath, value: Any) -> Any:
        there, part = _entry(new, at)
        if not there:
            return value
        changed = torch.as_tensor(part, dtype=value.dtype, device=value.device).detach()
        if changed.shape != value.shape:
            do, expected = "Give a value for every element.", f"shape {list(value.shape)}"
            raise unexpected(path_text(at, path), expected, str(list(changed.shape)), do)
        return changed.clone()

    def node(at: KeyPath, tree: Any, results: dict[Any, Any]) -> Any:
        there, part = _entry(new, at)
        if there and (not isinstance(part, Mapping) or not set(part) <= set(tree)):
            actual = listing(part) if isinstance(part, Mapping) else type(part).__name__
            do = "Name only the entries that change."
            raise unexpected(path_text(at, path), f"a dict with keys among {listing(tree)}", actual, do)
        return rebuilt(at, tree, results)

    return folded(old, leaf, node)


def _entry(tree: Any, path: KeyPath) -> tuple[bool, Any]:
    """(whether there is such an entry in nested mappings, what it is)."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return False, None
        tree = tree[key]
    return True, tree
