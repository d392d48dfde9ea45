"""What a loss returns beside its value: `(loss, aux)`, aux being nested dicts, lists and tuples of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.errors import kind_of, unexpected

__all__ = ["check_alike", "stacked", "value_and_aux"]


def value_and_aux(returned: Any, name: str) -> tuple[Any, Any]:
    """What a loss returned, taken apart. Tensors of aux are detached, numbers become tensors; None where there is none.

    Raises ArgumentError: not a pair, or a leaf of aux that is no tensor and no number.
    """
    if not isinstance(returned, tuple):
        return returned, None
    if len(returned) != 2:
        actual, do = (
            f"a tuple of {len(returned)}",
            "Return (loss, aux), where aux is a dict of all that is to come back.",
        )
        raise unexpected(name, "to return loss or (loss, aux)", actual, do)

    def detached(leaf: Any) -> Tensor:
        if not isinstance(leaf, (Tensor, int, float)):
            actual, do = kind_of(leaf), "Turn it into a tensor, or leave it out."
            raise unexpected(f"the aux of {name}", "tensors and numbers in nested dicts", actual, do)
        return torch.as_tensor(leaf).detach()

    return returned[0], pytree.tree_map(detached, returned[1])


def check_alike(aux: Any, first: Any, name: str, where: str) -> None:
    """Raise ArgumentError unless aux has the structure, shapes and dtypes of the first: it comes back stacked."""
    if _form(aux) != _form(first):
        do = "Return the same entries, of the same shapes, every time; nan or 0 where there is nothing to say."
        raise unexpected(f"{name}, at {where}", f"the form of the first, {_show(first)}", _show(aux), do)


def stacked(each: Sequence[Any], name: str) -> Any:
    """Losses, each with aux or all without, as one of `[T]` values and aux `[T, …]`. Raises ArgumentError."""
    for t, one in enumerate(each):
        check_alike(one, each[0], name, f"task {t}")
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *each)


def _form(tree: Any) -> Any:
    leaves, spec = pytree.tree_flatten(tree)
    return spec, [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _show(tree: Any) -> str:
    return str(pytree.tree_map(lambda x: f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else x, tree))
