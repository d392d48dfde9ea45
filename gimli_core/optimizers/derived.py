"""Optimizers of which only the step is written: the pullback is one local vector-Jacobian product.

Autograd runs through a single step and never across steps, so that the sweep stays what it is: with c the inputs
(theta, s, phi_opt, G) of the step and (B', S') its adjoints, `autograd.grad((theta', s'), c, (B', S'))`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors, counts, slots
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
    """The pullback of `step` by autograd, through this step alone. What the step does not use gets 0."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    theta, G = ({k: leaf(v) for k, v in tensors.items()} for tensors in (theta, G))
    held: State = {slot: {k: leaf(v) for k, v in of_slot.items()} for slot, of_slot in slots(state).items()}
    known = {k: {name: leaf(h) if name in wanted else h for name, h in per.items()} for k, per in hyper.items()}
    with torch.enable_grad():
        new_theta, new_state = step(theta, {**counts(state), **held}, G, known)
    pairs = [(new_theta[k], B[k]) for k in theta]
    pairs += [(new_state[slot][k], S[slot][k]) for slot in held for k in held[slot]]
    pairs = [(out, bar.to(out)) for out, bar in pairs if out.requires_grad]
    outputs, adjoints = [out for out, _ in pairs], [bar for _, bar in pairs]
    found: Any = torch.autograd.grad(outputs, leaves, adjoints, allow_unused=True) if pairs else [None] * len(leaves)
    of = {id(x): torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)}
    return Pulled(
        V={k: of[id(v)] for k, v in G.items()},
        B={k: of[id(v)] for k, v in theta.items()},
        S={slot: {k: of[id(v)] for k, v in held[slot].items()} for slot in held},
        A={k: {name: of[id(per[name])] for name in wanted if name in per} for k, per in known.items()},
    )
