"""The diagonal Jacobians of an elementwise rule, one pullback for each output: for looking at, not for the sweep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import listing, unexpected
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Optimizer

__all__ = ["diagonal_jacobians"]


def diagonal_jacobians(
    rule: Optimizer, slots: Collection[str], theta: Tensors, state: State | None, G: Tensors | None, hyper: Hyper | None
) -> dict[str, dict[str, Tensors]]:
    """`{output: {input: {name: d output / d input}}}` of a rule with these slots: `ElementwiseOptimizer.jacobians`."""
    _check(rule, slots, theta, state, G, hyper)
    if hyper is None:
        hyper = {
            k: {n: torch.as_tensor(v, dtype=torch.float64) for n, v in rule.hyperparameters().items()} for k in theta
        }
    # In float64, as scalars are in a step: beta2 = 0.999 is 1 in bfloat16.
    dtypes = {k: v.dtype for k, v in theta.items()}
    theta = {k: v.double() for k, v in theta.items()}
    # Spread every hyperparameter over the elements, so that nothing is summed away.
    hyper = {
        k: {n: torch.as_tensor(h).to(theta_k).expand_as(theta_k) for n, h in hyper[k].items()}
        for k, theta_k in theta.items()
    }
    state = rule.initial_state(theta, hyper) if state is None else state
    state = {"step": state["step"]} | {
        slot: {k: v.double().expand_as(theta[k]) for k, v in state[slot].items()} for slot in slots
    }
    G = {k: torch.zeros_like(v) if G is None else G[k].double() for k, v in theta.items()}
    result = {}
    for output in ("theta", *slots):
        B = {k: torch.full_like(v, float(output == "theta")) for k, v in theta.items()}
        S = {slot: {k: torch.full_like(v, float(output == slot)) for k, v in theta.items()} for slot in slots}
        pulled = rule.pullback(theta, state, G, hyper, B, S, rule.continuous())
        by_input: dict[str, Tensors] = {"G": pulled.V, "theta": pulled.B, **pulled.S}
        for name in rule.continuous():
            by_input[name] = {k: A[name] for k, A in pulled.A.items() if name in A}
        result[output] = {
            name: {k: d.to(dtypes[k]) for k, d in by_tensor.items()} for name, by_tensor in by_input.items()
        }
    return result


def _check(rule: Optimizer, slots: Collection[str], theta: Any, state: Any, G: Any, hyper: Any) -> None:
    """Raise unless the arguments of `jacobians` fit together."""
    _check_tensors("theta", theta, theta)
    if G is not None:
        _check_tensors("G", G, theta)
    if state is not None:
        if not isinstance(state, Mapping) or set(state) != {"step", *slots}:
            expected = f"a dict with the keys {listing(('step', *slots))}"
            raise unexpected("state", expected, repr(state), "A result's state_J has this form.")
        for slot in slots:
            _check_tensors(f"state[{slot!r}]", state[slot], theta)
    names = rule.continuous()
    if hyper is None:
        several = [n for n, v in rule.hyperparameters().items() if not isinstance(v, (int, float, Tensor))]
        if several:
            do = "Give hyper={name: {hyperparameter: value}}."
            raise unexpected("hyper", "the values of one step", f"a dict for {listing(several)}", do)
    elif not isinstance(hyper, Mapping) or not all(
        isinstance(hyper.get(k), Mapping) and set(hyper[k]) == set(names) for k in theta
    ):
        expected = f"{{name: {{hyperparameter: value}}}} with {listing(names)} for each name of theta"
        raise unexpected("hyper", expected, repr(hyper), "Add what is missing.")


def _check_tensors(argument: str, tensors: Any, theta: Any) -> None:
    """Raise unless `tensors` is a dict of floating-point tensors with theta's names and shapes."""
    sound = isinstance(tensors, Mapping) and isinstance(theta, Mapping) and set(tensors) == set(theta)
    if not sound or not all(isinstance(v, Tensor) and v.is_floating_point() for v in tensors.values()):
        actual = (
            f"a dict with {', '.join(map(repr, tensors))}" if isinstance(tensors, Mapping) else type(tensors).__name__
        )
        expected = "a dict {name: floating-point tensor} with the names of theta"
        raise unexpected(argument, expected, actual, "Key it as theta is.")
    for k, v in tensors.items():
        if v.shape != theta[k].shape:
            expected = f"shape {list(theta[k].shape)}, as theta[{k!r}] has"
            raise unexpected(f"{argument}[{k!r}]", expected, str(list(v.shape)), "Expand it.")
