"""Optimizers of which only the step is written: the pullback is one local vector-Jacobian product.

Autograd runs through a single step and never across steps, so that the sweep stays what it is: with c the inputs
(theta, s, phi_opt, G) of the step and (B', S') its adjoints, `vjp((theta', s')(c), (B', S'))`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import vjp

from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.optimizers.interface import Optimizer, Pulled

__all__ = ["DerivedOptimizer", "derived_pullback", "own_root"]

Step = Callable[[Tensors, State, Tensors, Hyper], tuple[Tensors, State]]


@dataclass(frozen=True, eq=False)
class DerivedOptimizer(Optimizer):
    """Base of your own optimizer: write `step` as plain tensor code, and the pullback follows.

    A subclass is a frozen dataclass. Its continuous hyperparameters are fields made by `hyperparameter(default)`;
    `slots` names its state tensors; `step(theta, state, G, hyper)` returns new dicts and changes nothing in place.
    Override `initial_state` for a state that does not start as zeros shaped like theta, a recurrent state for each
    coordinate say. A derivative inside of `step` is taken by `torch.func` (`grad`, `jvp`): so it runs over tasks and
    compiled, too.

    A learned optimizer names its own parameters in `own_parameters`: of any shape and sign, and the same for every
    tensor. Each is a field without a value, `hyperparameter(None)`, which the constructor or phi_opt supplies, and is
    a tensor, which reaches `step` as `hyper[k][name]`, or a dict of tensors (`dict(module.named_parameters())`; dots
    are allowed), which `step` gets by `self.own_tensors(hyper, name)`. `A_opt[name]` has the same form.

    A rule may ask for more of the step than its gradient, `sees = ("loss", "j")`: the loss's value, which is
    differentiated exactly (seen.py has the formula), and the number of the inner step, which is not. They reach `step`
    as `hyper[k]["loss"]` and `hyper[k]["j"]`, numbers, the same for every tensor.

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

    A step that is as long as the loss is high, theta' = theta - lr·ℓ·G / (1 + j):

    >>> @dataclass(frozen=True, eq=False)
    ... class ByLoss(DerivedOptimizer):
    ...     sees = ("loss", "j")
    ...     lr: float = hyperparameter(0.1)
    ...     def step(self, theta, state, G, hyper):
    ...         rate = {k: h["lr"] * h["loss"] / (1 + h["j"]) for k, h in hyper.items()}
    ...         return {k: v - rate[k] * G[k] for k, v in theta.items()}, {"step": state["step"] + 1}
    >>> theta_0 = {"w": torch.tensor([2.0])}
    >>> result = gimli.meta_gradient(gimli.Problem(loss, loss, ByLoss(lr=0.1)), theta_0, [None], None)
    >>> result.theta_J["w"], result.B_0["w"]       # w - lr·w³/2, and w'·(1 - lr·3w²/2)
    (tensor([1.6000]), tensor([0.6400]))

    A rule whose update is a small network of (G, m), the same for every coordinate:

    >>> from torch.func import functional_call
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> @dataclass(frozen=True, eq=False)
    ... class Learned(DerivedOptimizer):                    # theta' = theta - net(G, m')
    ...     net: dict = hyperparameter(None)
    ...     def own_parameters(self):
    ...         return ("net",)
    ...     def slots(self):
    ...         return ("m",)
    ...     def step(self, theta, state, G, hyper):
    ...         weights = self.own_tensors(hyper, "net")
    ...         m = {k: 0.9 * state["m"][k] + 0.1 * g for k, g in G.items()}
    ...         seen = {k: torch.stack([G[k], m[k]], -1) for k in theta}
    ...         moved = {k: v - functional_call(net, weights, seen[k]).squeeze(-1) for k, v in theta.items()}
    ...         return moved, {"step": state["step"] + 1, "m": m}
    >>> theta_0, phi_opt = {"w": torch.ones(3)}, {"net": dict(net.named_parameters())}
    >>> result = gimli.meta_gradient(gimli.Problem(loss, loss, Learned()), theta_0, [None] * 2, None, phi_opt=phi_opt)
    >>> {name: list(A.shape) for name, A in result.A_opt["net"].items()}
    {'0.weight': [4, 2], '0.bias': [4], '2.weight': [1, 4], '2.bias': [1]}
    """

    def slots(self) -> tuple[str, ...]:
        """Names of the state tensors kept for each tensor of theta."""
        return ()

    def own_tensors(self, hyper: Hyper, name: str) -> Tensors:
        """The own parameter `name` that is a dict of tensors, in that form."""
        start = f"{name}."
        of_tensor = next(iter(hyper.values()))  # the same for every tensor
        return {one.removeprefix(start): value for one, value in of_tensor.items() if one.startswith(start)}

    def continuous(self) -> tuple[str, ...]:
        return tuple(one for name in super().continuous() for one in self._entries(name))

    def hyperparameters(self) -> dict[str, Any]:
        return {one: v for name in super().continuous() for one, v in self._entries(name).items()}

    def _entries(self, name: str) -> dict[str, Any]:
        """The field `name`; the entries of an own parameter that is a dict, as `name.entry`."""
        value = getattr(self, name)
        if name in self.own_parameters() and isinstance(value, Mapping):
            return {f"{name}.{key}": v for key, v in value.items()}
        return {name: value}

    def check_range(self, name: str, value: float, argument: str) -> None:
        if own_root(self, name) is None:  # own parameters have no range
            super().check_range(name, value, argument)

    def bind(self, values: Mapping[str, Any]) -> Optimizer:
        merged = {}
        for name, value in values.items():
            before = getattr(self, name)
            both = isinstance(value, Mapping) and isinstance(before, Mapping) and name in self.own_parameters()
            merged[name] = {**before, **value} if both else value
        return super().bind(merged)

    def uses(self, name: str) -> bool:
        return super().uses(name) if own_root(self, name) is None else True

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        zeros = {slot: {k: torch.zeros_like(v) for k, v in theta.items()} for slot in self.slots()}
        return {"step": torch.zeros((), dtype=torch.float64, device="cpu"), **zeros}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        return derived_pullback(self.step, theta, state, G, hyper, B, S, wanted)


def own_root(optimizer: Optimizer, name: str) -> str | None:
    """The own parameter that `name` is, or is an entry of; None for any other hyperparameter."""
    return next(
        (
            parameter
            for parameter in optimizer.own_parameters()
            if name == parameter or name.startswith(f"{parameter}.")
        ),
        None,
    )


def derived_pullback(
    step: Step, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
) -> Pulled:
    """The pullback of `step` by autograd, through this step alone. What the step does not use gets 0.

    By `torch.func.vjp`, which works on tensors and inside of other transforms alike: under `vmap` over tasks, compiled.
    """
    learned = {k: {name: per[name] for name in wanted if name in per} for k, per in hyper.items()}

    def outputs(theta: Tensors, moments: State, G: Tensors, learned: Hyper) -> tuple[Tensors, State]:
        merged = {k: {**per, **learned[k]} for k, per in hyper.items()}
        new_theta, new = step(theta, {**counts(state), **moments}, G, merged)
        return {k: new_theta[k] for k in theta}, {
            slot: {k: new[slot][k] for k in of_slot} for slot, of_slot in moments.items()
        }

    pulled: Any = vjp(outputs, theta, slots(state), G, learned)
    (new_theta, new), pulled_back = pulled
    adjoints = (
        {k: B[k].to(out) for k, out in new_theta.items()},
        {slot: {k: S[slot][k].to(out) for k, out in of_slot.items()} for slot, of_slot in new.items()},
    )
    by_theta, by_slots, by_G, by_learned = pulled_back(adjoints)
    return Pulled(V=by_G, B=by_theta, S=by_slots, A=by_learned)
