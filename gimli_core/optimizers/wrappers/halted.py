"""A rule that rests from a given step on, so that tasks of one run may end at steps of their own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors, slots
from gimli_core.optimizers.interface import Pulled, hyperparameter
from gimli_core.optimizers.wrappers.interface import Wrapper, only

__all__ = ["Halted"]


@dataclass(frozen=True, eq=False)
class Halted(Wrapper):
    """theta', s' = inner step where j < stop, else theta, s: the identity, whose adjoints pass as they are.

    Args:
        inner: any optimizer.
        stop: the number of steps, which nothing is differentiated by; `per_task(…)` where tasks have their own.
    """

    stop: Any = hyperparameter(float("inf"))

    def __post_init__(self) -> None:
        pass  # made by the engine, around a rule that has checked itself

    def seen(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.inner.seen(), "j")))

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        on = _running(hyper)
        moved, new = self.inner.step_used(theta, state, G, hyper)
        rested = {slot: _choose(on, new[slot], of_slot) for slot, of_slot in slots(state).items()}
        return _choose(on, moved, theta), {**new, **rested}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        on = _running(hyper)
        zero = {slot: _choose(on, of_slot, torch.zeros_like) for slot, of_slot in S.items()}
        moving = _choose(on, B, torch.zeros_like)
        pulled = self.inner.pullback_used(theta, state, G, hyper, moving, zero, only(wanted, self.inner))
        S_j = {slot: _choose(on, pulled.S[slot], of_slot) for slot, of_slot in S.items()}
        return pulled._replace(B=_choose(on, pulled.B, B), S=S_j)


def _running(hyper: Hyper) -> Tensor:
    first = next(iter(hyper.values()))
    return first["j"] < first["stop"]


def _choose(on: Tensor, yes: Tensors, no: Any) -> Tensors:
    """`yes` where the rule still runs, else `no`, a dict or a function of what is in `yes`."""
    return {k: torch.where(on, v, no(v) if callable(no) else no[k]) for k, v in yes.items()}
