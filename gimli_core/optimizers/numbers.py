"""A 0-dimensional tensor of theta as a vector of one element, which keeps its dtype beside float64 hyperparameters.

torch promotes `float64 number · float32 number` to float64, but `float64 number · float32 vector` to float32. So a
rule, a wrapper or a user's own step, all of them written as for vectors, would turn a parameter that is one number
into float64. At the one place where the engine calls them such a parameter becomes a vector of one, and back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from gimli_core.notation import COUNTS, Hyper, State, Tensors

__all__ = ["pulled_as_vectors", "stepped_as_vectors"]

Method = TypeVar("Method", bound=Callable[..., Any])


def stepped_as_vectors(step: Method) -> Method:
    """`step_used`, handed no number that is not in float64."""

    @functools.wraps(step)
    def wrapped(self: Any, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        names = _numbers(theta)
        if not names:
            return step(self, theta, state, G, hyper)  # type: ignore[no-any-return]
        new_theta, new_state = step(
            self, _lifted(theta, names), _lifted_slots(state, theta, names), _lifted(G, names), hyper
        )
        return _lowered(new_theta, theta), _lowered_slots(new_state, names)

    return wrapped  # type: ignore[return-value]


def pulled_as_vectors(pullback: Method) -> Method:
    """`pullback_used`, handed no number that is not in float64."""

    @functools.wraps(pullback)
    def wrapped(
        self: Any, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Any:
        names = _numbers(theta)
        if not names:
            return pullback(self, theta, state, G, hyper, B, S, wanted)
        one, s, g, b = (_lifted(theta, names), _lifted_slots(state, theta, names), _lifted(G, names), _lifted(B, names))
        pulled = pullback(self, one, s, g, hyper, b, _lifted_slots(S, theta, names), wanted)
        V, B_j = _lowered(pulled.V, theta), _lowered(pulled.B, theta)
        return pulled._replace(V=V, B=B_j, S=_lowered_slots(pulled.S, names))

    return wrapped  # type: ignore[return-value]


def _numbers(theta: Tensors) -> frozenset[str]:
    return frozenset(k for k, v in theta.items() if v.ndim == 0 and v.dtype != torch.float64)


def _lifted(tensors: Tensors, names: Collection[str]) -> Tensors:
    return {k: v.reshape(1) if k in names else v for k, v in tensors.items()}


def _lowered(tensors: Tensors, theta: Tensors) -> Tensors:
    return {k: v.reshape(theta[k].shape) for k, v in tensors.items()}


def _lifted_slots(state: State, theta: Tensors, names: Collection[str]) -> State:
    """Slots that are like theta; plain numbers, in float64, stay numbers."""

    def lift(k: str, v: Tensor) -> Tensor:
        return v.reshape(1) if k in names and v.ndim == 0 and v.dtype == theta[k].dtype else v

    return _by_slot(state, lift)


def _lowered_slots(state: State, names: Collection[str]) -> State:
    return _by_slot(state, lambda k, v: v.reshape(()) if k in names and v.shape == (1,) else v)


def _by_slot(state: State, change: Callable[[str, Tensor], Tensor]) -> State:
    return {
        slot: {k: change(k, v) for k, v in of_slot.items()}
        if slot not in COUNTS and isinstance(of_slot, Mapping)
        else of_slot
        for slot, of_slot in state.items()
    }
