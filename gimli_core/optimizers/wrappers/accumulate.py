"""Gradient accumulation: one optimizer step for every k gradients."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Hyper, State, Tensors, slots
from gimli_core.optimizers.interface import Pulled
from gimli_core.optimizers.wrappers.interface import Wrapper, only, rules_within
from gimli_core.optimizers.wrappers.lookahead import check_every

__all__ = ["Accumulate"]


@dataclass(frozen=True, eq=False)
class Accumulate(Wrapper):
    """The mean of k successive gradients goes to the inner optimizer; theta rests in between.

        a               = accumulated + G / k
        theta', s'      = inner step with a    where k divides t,  else  theta, s
        accumulated'    = 0                    where k divides t,  else  a

    The inner optimizer counts its own steps, floor(t / k). What is left over after the last whole k is dropped. A
    tensor that the loss of a step does not use adds nothing; used in none of k steps, it is left alone.

    Args:
        inner: the optimizer that gets the mean.
        every: k, not differentiable.

    Raises:
        ArgumentError: k below 1, or an Accumulate in an Accumulate.

    Cost: state |theta| more; the inner step is evaluated in every step, and used in one of k.

    >>> import torch, gimli_core as gimli
    >>> rule = gimli.optimizers.Accumulate(gimli.optimizers.SGD(lr=1.0), every=2)
    >>> theta, G = {"w": torch.ones(1)}, {"w": torch.ones(1)}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in rule.hyperparameters().items()}}
    >>> theta, state = rule.step(theta, rule.initial_state(theta, hyper), G, hyper)
    >>> theta["w"], rule.step(theta, state, G, hyper)[0]["w"]
    (tensor([1.]), tensor([0.]))
    """

    every: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_every("Accumulate", self.every)
        for rule in rules_within(self.inner):
            if isinstance(rule, Accumulate):
                once = f"Use one, with every={self.every * rule.every}: a mean of means is the mean."
                raise unexpected("Accumulate(inner)", "an optimizer without Accumulate", "one in it", once)

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        zeros = {k: torch.zeros_like(v) for k, v in theta.items()}
        return {**self.inner.initial_state(theta, hyper), "accumulated": zeros}

    def _parts(self, state: State, G: Tensors) -> tuple[Tensor, State, Tensors, Tensors, dict[str, Tensor]]:
        """(k divides t?, the inner state, a, what of it the inner step gets, for how long a tensor was not used)."""
        inner = {slot: of_slot for slot, of_slot in state.items() if slot not in ("accumulated", "idle")}
        inner["step"] = torch.floor(state["step"] / self.every)
        a = {k: v + G[k] / self.every if k in G else v for k, v in state["accumulated"].items()}
        before = state.get("idle", {})
        idle = {
            k: before.get(k, 0) + (torch.zeros if k in G else torch.ones)((), dtype=torch.float64)
            for k in a
            if k in before or k not in G
        }
        on = (state["step"] + 1) % self.every == 0
        mean = {k: v for k, v in a.items() if k not in idle or idle[k] < self.every}
        return on, inner, a, mean, idle

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        on, inner, a, mean, idle = self._parts(state, G)
        moved, new = self.inner.step_used(theta, inner, mean, hyper)
        kept = {slot: _choose(on, new.get(slot, {}), of_slot) for slot, of_slot in slots(inner).items()}
        if "skipped" in new:
            before = inner.get("skipped", {})
            kept["skipped"] = {k: torch.where(on, v, before.get(k, 0.0)) for k, v in new["skipped"].items()}
        if idle:
            kept["idle"] = {k: torch.where(on, 0.0, v) for k, v in idle.items()}
        rest = {k: torch.where(on, 0.0, v) for k, v in a.items()}
        return _choose(on, moved, theta), {"step": state["step"] + 1, **kept, "accumulated": rest}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        on, inner, _, mean, _ = self._parts(state, G)
        inner_S = {slot: of_slot for slot, of_slot in S.items() if slot != "accumulated"}
        moved_B, rest_B = _split(on, B)
        moved_S, rest_S = {}, {}
        for slot, of_slot in inner_S.items():
            moved_S[slot], rest_S[slot] = _split(on, of_slot)
        pulled = self.inner.pullback_used(theta, inner, mean, hyper, moved_B, moved_S, only(wanted, self.inner))
        a_bar = {k: torch.where(on, 0.0, v) for k, v in S["accumulated"].items()}
        a_bar = {k: v + pulled.V[k] if k in pulled.V else v for k, v in a_bar.items()}
        return Pulled(
            V={k: v / self.every for k, v in a_bar.items() if k in G},
            B={k: v + rest_B[k] for k, v in pulled.B.items()},
            S={
                **{slot: {k: v + rest_S[slot][k] for k, v in of_slot.items()} for slot, of_slot in pulled.S.items()},
                "accumulated": a_bar,
            },
            A=pulled.A,
        )


def _choose(on: Tensor, yes: Any, no: Tensors) -> Tensors:
    return {k: torch.where(on, yes[k], v) for k, v in no.items()}


def _split(on: Tensor, adjoint: Tensors) -> tuple[Tensors, Tensors]:
    """(the part that goes through the inner step, the part that passes it by)."""
    moved = {k: torch.where(on, v, 0.0) for k, v in adjoint.items()}
    return moved, {k: v - moved[k] for k, v in adjoint.items()}
