"""Entries of a tree of tensors, by the keys that a reader types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gimli_core.step_through.terminal.expressions import entry_of
from gimli_core.trees import tensors

__all__ = ["at", "fill"]


def fill(tree: Any, keys: Sequence[Any], value: Any) -> None:
    """Put `value` at `keys` in a tree of tensors: keys of mappings first, then indices into each tensor."""
    while isinstance(tree, Mapping) and keys:
        tree, keys = entry_of(tree, keys[0]), keys[1:]
    for t in tensors(tree):
        place = t
        for key in keys:  # each gives a view, which is written through
            place = entry_of(place, key)
        place.copy_(torch.as_tensor(value, dtype=t.dtype, device=t.device))


def at(tree: Any, keys: Sequence[Any]) -> Any:
    """What stands at `keys`."""
    for key in keys:
        tree = entry_of(tree, key)
    return tree
