"""One optimizer step as one node of autograd's graph: `step` forwards, the analytic `pullback` backwards.

    forwards     theta', s' = opt(theta, s, G, phi_opt)                        line 6
    backwards    B', S'  ->  V, A_opt, the direct part of B, S                 lines 11, 12, 14

No graph is recorded inside. Autograd does the rest of lines 13 and 14, since G hangs from the graph of the inner
loss: V flows into it, and comes out as V times the Hessian and V times the mixed derivative.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.derivatives.once import Once
from gimli_core.notation import Hyper, State, Tensors, slots
from gimli_core.optimizers.interface import Optimizer
from gimli_core.optimizers.recordable import TWICE

__all__ = ["differentiable_step"]


def differentiable_step(
    rule: Optimizer, theta: Tensors, state: State, G: Tensors, hyper: Hyper
) -> tuple[Tensors, State]:
    """`rule.step(theta, state, G, hyper)`, tied into autograd by `rule.pullback`.

    Second derivatives are exact for the rules in `TWICE`, and NaN where Adam's or Adagrad's gradient is exactly 0 (the
    first derivative is exact there too); for other rules they raise SecondDerivativeError.

    Cost: the step; backwards one pullback. Keeps theta, state and G.
    """
    learned = {id(h): h for per in hyper.values() for h in per.values() if h.requires_grad}  # each once
    place, fixed = _NOTHING_LEARNED, hyper
    if learned:
        at = {number: i for i, number in enumerate(learned)}
        place = {k: {n: at[id(h)] for n, h in per.items() if id(h) in at} for k, per in hyper.items()}
        fixed = {k: {n: h for n, h in per.items() if id(h) not in at} for k, per in hyper.items()}
    moments = {slot: tuple(of_slot) for slot, of_slot in slots(state).items()}
    plan = _Plan(rule, tuple(theta), moments, state["step"], fixed, place)
    tensors = (*theta.values(), *(G[k] for k in theta), *plan.in_order(state), *learned.values())
    outputs = _Step.apply(plan, *tensors)
    n = len(theta)
    return dict(zip(theta, outputs[:n], strict=True)), {"step": state["step"] + 1, **plan.by_slot(outputs[n:])}


_NOTHING_LEARNED: Mapping[str, dict[str, int]] = MappingProxyType({})


def _as_it_is(x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast, which would round what an optimizer holds."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class _Plan(NamedTuple):
    """How the flat list of tensors that autograd passes around is read."""

    rule: Optimizer
    names: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]  # which tensors have an entry in each slot
    t: Tensor  # the finished steps
    fixed: Hyper  # hyperparameters that do not require grad
    place: Mapping[str, dict[str, int]]  # the others, as positions among the last tensors; empty if there are none

    def arguments(self, tensors: tuple[Tensor, ...]) -> tuple[Tensors, State, Tensors, Hyper]:
        """theta, s, G, phi_opt."""
        n, m = len(self.names), self.before_learned()
        theta = dict(zip(self.names, tensors[:n], strict=True))
        G = dict(zip(self.names, tensors[n : 2 * n], strict=True))
        state = {"step": self.t, **self.by_slot(tensors[2 * n : m])}
        if not self.place:
            return theta, state, G, self.fixed
        hyper = {k: self.fixed[k] | {name: tensors[m + i] for name, i in self.place[k].items()} for k in self.names}
        return theta, state, G, hyper

    def before_learned(self) -> int:
        """How many tensors come before the learned hyperparameters."""
        return 2 * len(self.names) + sum(map(len, self.slots.values()))

    def in_order(self, state: State) -> list[Tensor]:
        """The entries of a state, slot by slot."""
        return [state[slot][k] for slot, names in self.slots.items() for k in names]

    def by_slot(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensors]:
        """The inverse of `in_order`."""
        remaining = iter(tensors)
        return {slot: {k: next(remaining) for k in names} for slot, names in self.slots.items()}


class _Step(torch.autograd.Function):
    """Tensors in: theta, G, s slot by slot, learned hyperparameters. Out: theta', s' slot by slot."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        with _as_it_is(tensors[0]):
            theta, s = plan.rule.step(*plan.arguments(tensors))  # line 6
        # .data, since autograd would take a rule's reshapes for views that belong together.
        return tuple(x.data for x in (*(theta[k] for k in plan.names), *plan.in_order(s)))

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        tensors = ctx.saved_tensors  # raises if one was changed in place since the step
        n = len(plan.names)
        B, S = dict(zip(plan.names, arriving[:n], strict=True)), plan.by_slot(arriving[n:])
        twice = torch.is_grad_enabled() and type(plan.rule) in TWICE
        with torch.set_grad_enabled(twice), _as_it_is(tensors[0]):
            wanted = {name for places in plan.place.values() for name in places}
            pulled = plan.rule.pullback(*plan.arguments(tensors), B, S, wanted)  # lines 11, 12, 14
            A: list[Tensor | None] = [None] * (len(tensors) - plan.before_learned())
            for k, places in plan.place.items():
                for name, i in places.items():
                    increment, sofar = pulled.A[k].get(name), A[i]
                    A[i] = increment if sofar is None else sofar if increment is None else sofar + increment
            by_input = (
                *(pulled.B[k] for k in plan.names),
                *(pulled.V[k] for k in plan.names),
                *plan.in_order(pulled.S),
                *A,
            )
            gradients = [None if g is None else g.to(x) for g, x in zip(by_input, tensors, strict=True)]
        if torch.is_grad_enabled() and not twice:
            gradients = _guarded(type(plan.rule).__name__, gradients, (*tensors, *arriving))
        return (None, *gradients)


def _guarded(rule: str, gradients: list[Tensor | None], sources: tuple[Tensor, ...]) -> list[Tensor | None]:
    message = (
        f"step: expected one derivative through the inner loop; got a request for a second, through a step of {rule}. "
        f"It is exact for {', '.join(sorted(kind.__name__ for kind in TWICE))}; for others, "
        "differentiate a plain unroll."
    )
    present = [g for g in gradients if g is not None]
    guarded = iter(Once.apply(message, len(present), *present, *sources))
    return [None if g is None else next(guarded) for g in gradients]
