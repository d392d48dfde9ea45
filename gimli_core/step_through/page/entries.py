"""Single entries of theta, by name and index, to follow through a run."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from gimli_core.errors import closest, listing, unexpected
from gimli_core.notation import Tensors

__all__ = ["entry", "label", "largest"]


def entry(text: str, theta: Tensors) -> tuple[str, int]:
    """(tensor name, flat index) of an entry written as `name[3, 2]`, or `name` for a tensor's first entry."""
    name, _, inside = (text, "", "") if text in theta else text.rpartition("[")
    if name not in theta:
        raise unexpected(
            f"entry {text!r}",
            f"a tensor of theta with an index, such as {next(iter(theta))}[0]",
            f"the name {name or text!r}",
            f"Use one of {listing(theta)}.{closest(name or text, theta)}",
        )
    shape = theta[name].shape
    try:
        index = tuple(int(part) for part in inside.rstrip("]").split(",")) if inside else (0,) * len(shape)
        return name, int(np.ravel_multi_index(index, shape)) if shape else 0
    except ValueError:
        raise unexpected(
            f"entry {text!r}", f"an index within the shape {list(shape)}", inside.rstrip("]"), "Count from 0."
        ) from None


def label(name: str, index: int, t: Tensor) -> str:
    """`name[3, 2]`, from which `entry` reads the two again."""
    return f"{name}[{', '.join(map(str, np.unravel_index(index, t.shape)))}]" if t.ndim else name


def largest(name: str, t: Tensor) -> tuple[str, int]:
    """The entry of the largest magnitude."""
    return name, int(t.abs().argmax()) if t.numel() else 0
