"""state_0, checked against the form of a cold start."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.derivatives.finite import finite
from gimli_core.errors import closest, listing, unexpected
from gimli_core.layout import dense
from gimli_core.notation import State, counts

__all__ = ["check_state"]


def check_state(state_0: Any, like: State, names: Collection[str]) -> State:
    """`state_0`, detached, if it has the structure of `like`, a cold start of the tensors `names`.

    Besides, it may count what some of the tensors have missed.
    """
    more = counts(state_0).items() if isinstance(state_0, Mapping) else ()
    missed = {
        name: {k: like["step"] for k in names if not isinstance(of_slot, Mapping) or k in of_slot}
        for name, of_slot in more
        if name not in like
    }
    state = _checked(state_0, {**like, **missed})
    for name in missed:
        for k, count in state[name].items():
            _check_count(f"state_0[{name!r}][{k!r}]", count, most=state["step"])
    _check_count("state_0['step']", state["step"])
    return state


def _check_count(path: str, count: Tensor, most: Tensor | None = None) -> None:
    if count < 0 or count != count.round() or (most is not None and count > most):
        expected = "a whole number of finished steps, 0 or more"
        if most is not None:
            expected = f"a whole number of missed steps, 0 to {most.item():g}"
        raise unexpected(path, expected, f"{count.item():g}", "A result's state_J counts them.")


def _checked(state_0: Any, like: Mapping[str, Any]) -> State:
    """The state with the slots of `like`, of each tensor's name within, and tensors of the same shapes."""
    _check_names(state_0, like, "state_0")
    state: State = {}
    for slot, of_slot in like.items():
        path = f"state_0[{slot!r}]"
        if isinstance(of_slot, Tensor):
            state[slot] = _checked_tensor(state_0[slot], of_slot, path)
        else:
            _check_names(state_0[slot], of_slot, path)
            state[slot] = {k: _checked_tensor(state_0[slot][k], of_slot[k], f"{path}[{k!r}]") for k in of_slot}
    return state


def _check_names(entries: Any, like: Mapping[str, Any], path: str) -> None:
    if not isinstance(entries, Mapping) or set(entries) != set(like):
        actual = listing(entries) if isinstance(entries, Mapping) else type(entries).__name__
        near = "".join(closest(k, like) for k in entries if k not in like) if isinstance(entries, Mapping) else ""
        raise unexpected(
            path, f"a dict with the keys {listing(like)}", actual, f"A result's state_J has this form.{near}"
        )


def _checked_tensor(value: Any, like: Tensor, path: str) -> Tensor:
    value = torch.as_tensor(value, dtype=like.dtype) if isinstance(value, (int, float)) else value
    if not isinstance(value, Tensor) or value.shape != like.shape:
        actual = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise unexpected(path, f"a tensor of shape {list(like.shape)}", actual, "Take it from a result's state_J.")
    if not finite(value):
        raise unexpected(path, "finite values", "inf or nan", "Find out where it was computed.")
    if value.ndim > 0 and value.device != like.device:
        expected = f"a tensor on theta's device {like.device}"
        raise unexpected(path, expected, f"one on {value.device}", "Move it with .to(...).")
    return dense(value.detach().to(like.dtype))
