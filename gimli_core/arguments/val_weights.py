"""val_weights, checked: how much L_val(theta_j) counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gimli_core.errors import kind_of, unexpected

__all__ = ["check_weights"]


def check_weights(val_weights: Any, steps: int, first: int) -> tuple[float | None, ...]:
    """w_0 … w_J, None where L_val is not asked for: J + 1 numbers, from J or J + 1. Raises ArgumentError."""
    if val_weights is None:
        return (None,) * steps + (1.0,)
    if isinstance(val_weights, Mapping):
        expected, actual = "a sequence of numbers or a vector", kind_of(val_weights)
        raise unexpected("val_weights", expected, actual, "Give them in the order of the steps.")
    try:
        weights = [float(w.detach() if isinstance(w, Tensor) else w) for w in val_weights]
    except (TypeError, ValueError):
        weights = []
    if len(weights) not in (steps, steps + 1) or not weights:
        raise unexpected(
            "val_weights",
            f"{steps} numbers (for theta_1 … theta_{steps}) or {steps + 1} (from theta_0 on)",
            f"{len(weights)} from {type(val_weights).__name__}",
            "w_j weighs L_val(theta_j).",
        )
    if not all(abs(w) < float("inf") for w in weights):
        raise unexpected("val_weights", "finite numbers", repr(weights), "Find out where they were computed.")
    if not any(weights):
        raise unexpected("val_weights", "at least one weight that is not 0", "zeros only", "The loss would be 0.")
    # A weight of 0 that is learned has a derivative too.
    learned = any(isinstance(w, Tensor) and w.requires_grad for w in (val_weights, *val_weights))
    checked = (None,) * (steps + 1 - len(weights)) + tuple(w if w or learned else None for w in weights)
    early = [j for j in range(first) if checked[j] is not None]
    if early:
        expected = f"no weight before theta_{first}, where the sweep of the last {steps - first} steps ends"
        actual = f"one at theta_{early[0]}" + (", which is learned" if learned else "")
        raise unexpected("val_weights", expected, actual, "Raise the k of Truncated(k), or put 0 there.")
    return checked
