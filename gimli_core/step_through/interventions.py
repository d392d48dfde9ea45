"""Values that a reader puts in place of the engine's while it stands at a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from gimli_core.errors import listing, unexpected

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
    if isinstance(old, Mapping):
        if not isinstance(new, Mapping) or not set(new) <= set(old):
            actual = listing(new) if isinstance(new, Mapping) else type(new).__name__
            raise unexpected(
                path, f"a dict with keys among {listing(old)}", actual, "Name only the entries that change."
            )
        return {k: merged(v, new[k], f"{path}[{k!r}]") if k in new else v for k, v in old.items()}
    value = torch.as_tensor(new, dtype=old.dtype, device=old.device).detach()
    if value.shape != old.shape:
        raise unexpected(path, f"shape {list(old.shape)}", str(list(value.shape)), "Give a value for every element.")
    return value.clone()
