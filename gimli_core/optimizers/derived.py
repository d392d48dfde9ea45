"""Optimizers of which only the step is written: the pullback is one local vector-Jacobian product.

Autograd runs through a single step and never across steps, so that the sweep stays what it is: with c the inputs
(theta, s, phi_opt, G) of the step and (B', S') its adjoints, `vjp((theta', s')(c), (B', S'))`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch.func import vjp

from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Optimizer, Pulled

__all__ = ["DerivedOptimizer", "derived_pullback"]

Step = Callable[[Tensors, State, Tensors, Hyper], tuple[Tensors, State]]


@dataclass(frozen=True, eq=False)
class DerivedOptimizer(Optimizer):
    """Base of your own optimizer: write `step` as plain tensor code, and the pullback follows.

    A subclass is a frozen dataclass. Its continuous hyperparameters are fields made by `hyperparameter(default)`;
    `slots` names its state tensors; `step(theta, state, G, hyper)` returns new dicts and changes nothing in place.
    A learned optimizer names its own parameters in `own_parameters`: they may have any shape, are the same for every
    tensor, and reach `step` as `hyper[k][name]`. Override `initial_state` for a state that does not start as zeros
    shaped like theta, a recurrent state for each coordinate say.

    Where a formula is singular, autograd's derivative is returned: NaN for sqrt at 0. `singular.flat_sqrt` is
    a square root whose derivative is 0 there, which is exact in Adam-like rules (NOTE [derivative at zero]).

    Cost: one evaluation of `step` more than an analytic pullback, and its graph, one step at a time.

    >>> import torch, gimli_core as gimli
    >>> from dataclasses import dataclass
    >>> from gimli_core.optimizers import DerivedOptimizer, hyperparameter
    >>> @dataclass(frozen=True, eq=False)
    ... class Cubic(DerivedOptimizer):                      # theta' = theta - lr·G³
    ...     lr: float = hyperparameter(0.1)
    ...     def step(self, theta, state, G, hyper):
    ...         moved = {k: v - hyper[k]["lr"] * G[k] ** 3 for k, v in theta.items()}
    ...         return moved, {"step": state["step"] + 1}
    >>> def loss(theta, phi, batch):
    ...     return (theta["w"] ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, Cubic(lr=0.1))
    >>> theta_0 = {"w": torch.tensor([2.0])}
    >>> result = gimli.meta_gradient(problem, theta_0, lambda j: None, None, steps=1, phi_opt={"lr": 0.1})
    >>> result.A_opt["lr"]                                   # -G³·theta_1 = -8·1.2
    tensor(-9.6000, dtype=torch.float64)
    """

    def slots(self) -> tuple[str, ...]:
        """Names of the state tensors kept for each tensor of theta."""
        return ()

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        zeros = {slot: {k: torch.zeros_like(v) for k, v in theta.items()} for slot in self.slots()}
        return {"step": torch.zeros((), dtype=torch.float64), **zeros}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        return derived_pullback(self.step, theta, state, G, hyper, B, S, wanted)


def derived_pullback(
    step: Step, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
) -> Pulled:
    """The pullback of `step` by autograd, through this step alone. What the step does not use gets 0.

    By `torch.func.vjp`, which works on tensors and inside of other transforms alike: under `vmap` over tasks, compiled.
    """
    slots = {slot: held for slot, held in state.items() if slot != "step"}
    learned = {k: {name: per[name] for name in wanted if name in per} for k, per in hyper.items()}

    def outputs(theta: Tensors, slots: State, G: Tensors, learned: Hyper) -> tuple[Tensors, State]:
        known = {k: {**per, **learned[k]} for k, per in hyper.items()}
        new_theta, new = step(theta, {"step": state["step"], **slots}, G, known)
        return {k: new_theta[k] for k in theta}, {slot: {k: new[slot][k] for k in held} for slot, held in slots.items()}

    (new_theta, new), pulled_back = vjp(outputs, theta, slots, G, learned)
    adjoints = (
        {k: B[k].to(out) for k, out in new_theta.items()},
        {slot: {k: S[slot][k].to(out) for k, out in held.items()} for slot, held in new.items()},
    )
    by_theta, by_slots, by_G, by_learned = pulled_back(adjoints)
    return Pulled(V=by_G, B=by_theta, S=by_slots, A=by_learned)
