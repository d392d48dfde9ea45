"""The mathematics of every rule, on random states: the pullback is linear in (B, S), and is the vjp of the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer
from gimli_core.trees import tensors
from tests.compare import distance
from tests.problems import RULES, Rule, every_rule

seeds = st.integers(0, 2**31)
few = settings(max_examples=12)


def drawn(
    rule: Rule, seed: int, elementwise: bool = False
) -> tuple[Any, Tensors, State, Tensors, Hyper, Tensors, State]:
    """(optimizer, theta, state, G, hyper, B, S), all random; some elements of theta, G and the state are exactly 0."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def holed(x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape, generator=generator) < 0.7)

    optimizer = rule.optimizer.bind(rule.learned)
    if rule.name.startswith(("adamax", "rprop", "lion", "sparse")):
        # Kinks at 0, where autograd takes one side or the other; test_singular.py says what the rules return there.
        holed = torch.Tensor.clone
    theta = {"a": holed(random(5)), "b": random()}
    values = {**optimizer.hyperparameters(), **rule.learned}
    whole = optimizer.whole_tensor()
    hyper = {
        k: {
            n: torch.as_tensor(h, dtype=torch.float64).expand(v.shape if elementwise and n not in whole else ())
            for n, h in values.items()
        }
        for k, v in theta.items()
    }
    cold = optimizer.initial_state(theta, hyper)
    # Second moments stay above 0: what holds at 0 is the business of test_singular.py.
    positive = {"sum", "exp_avg_sq", "max_exp_avg_sq", "acc_delta", "exp_inf", "step_size", "variance", "mu_product"}

    def slot_value(slot: str, like: Tensor) -> Tensor:
        if slot == "square_avg":
            return 9 + random(*like.shape) ** 2  # above the square of any grad_avg
        return 0.1 + random(*like.shape) ** 2 if slot in positive else holed(random(*like.shape))

    state = {slot: {k: slot_value(slot, v) for k, v in held.items()} for slot, held in cold.items() if slot != "step"}
    state["step"] = torch.tensor(float(seed % 4))
    B = {k: random(*v.shape) for k, v in theta.items()}
    S = {slot: {k: random(*v.shape) for k, v in held.items()} for slot, held in cold.items() if slot != "step"}
    return optimizer, theta, state, {k: holed(random(*v.shape)) for k, v in theta.items()}, hyper, B, S


@every_rule
@few
@given(seed=seeds, factor=st.floats(-3, 3))
def test_the_pullback_is_linear(rule: Rule, seed: int, factor: float) -> None:
    optimizer, theta, state, G, hyper, B, S = drawn(rule, seed)
    *_, B2, S2 = drawn(rule, seed + 1)
    mixed_B = {k: B[k] + factor * B2[k] for k in B}
    mixed_S = {slot: {k: S[slot][k] + factor * S2[slot][k] for k in held} for slot, held in S.items()}

    def pull(b: Tensors, s: State) -> list[Tensor]:
        pulled = optimizer.pullback(theta, state, G, hyper, b, s, tuple(rule.learned))
        return [leaf for part in (pulled.V, pulled.B, pulled.S, pulled.A) for leaf in tensors(part)]

    size = 1 + max(float(x.abs().max()) for x in (*pull(B, S), *pull(B2, S2)))
    for both, one, two in zip(pull(mixed_B, mixed_S), pull(B, S), pull(B2, S2), strict=True):
        # Rounding of some dozen products and sums, of numbers up to `size`, of which large ones may cancel.
        assert float((both - (one + factor * two)).abs().max()) < 1e-14 * size * 64


@every_rule
@few
@given(seed=seeds, elementwise=st.booleans())
def test_the_pullback_is_the_vjp_of_the_step(rule: Rule, seed: int, elementwise: bool) -> None:
    """Autograd through the shipped step: V, B, S and A, with hyperparameters that are numbers or one per element."""
    optimizer, theta, state, G, hyper, B, S = drawn(rule, seed, elementwise)

    def leaves(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return tree.clone().requires_grad_()
        return {k: v if k == "step" else leaves(v) for k, v in tree.items()}

    inputs = [leaves(tree) for tree in (theta, state, G, hyper)]
    new_theta, new_state = optimizer.step(*inputs)
    L = sum((B[k] * new_theta[k]).sum() for k in B)
    L = L + sum((bar * new_state[slot][k]).sum() for slot, held in S.items() for k, bar in held.items())
    pulled = optimizer.pullback(theta, state, G, hyper, B, S, tuple(rule.learned))
    pairs = [(pulled.V[k], inputs[2][k]) for k in B] + [(pulled.B[k], inputs[0][k]) for k in B]
    pairs += [(pulled.S[slot][k], inputs[1][slot][k]) for slot, held in S.items() for k in held]
    # The start of an accumulator is no part of a step.
    pairs += [(A, inputs[3][k][name]) for k, by_name in pulled.A.items() for name, A in by_name.items()]
    expected = torch.autograd.grad(L, [leaf for _, leaf in pairs], allow_unused=True)
    size = max(float(g.abs().max()) for g in expected if g is not None)
    for (found, leaf), g in zip(pairs, expected, strict=True):
        assert found.shape == leaf.shape
        g = torch.zeros_like(leaf) if g is None else g
        assert float((found - g).abs().max()) < 1e-13 * max(size, 1.0)


@pytest.mark.parametrize(
    "rule", [r for r in RULES if isinstance(r.optimizer, ElementwiseOptimizer)], ids=lambda rule: rule.name
)
@settings(max_examples=3)
@given(seed=seeds)
def test_jacobians_against_finite_differences(rule: Rule, seed: int) -> None:
    """Column by column: every output moved by every input, by a central difference."""
    optimizer, theta, state, G, hyper, _, _ = drawn(rule, seed, elementwise=True)
    theta, G = {"a": theta["a"]}, {"a": G["a"]}
    hyper = {"a": hyper["a"]}
    state = {slot: held if slot == "step" else {"a": held["a"]} for slot, held in state.items()}
    jacobians = optimizer.jacobians(theta, state, G, hyper)
    h = 1e-6

    def outputs(name: str, by: float) -> dict[str, Tensor]:
        moved = [
            {"a": theta["a"] + by * (name == "theta")},
            {slot: held if slot == "step" else {"a": held["a"] + by * (name == slot)} for slot, held in state.items()},
            {"a": G["a"] + by * (name == "G")},
            {"a": {n: value + by * (name == n) for n, value in hyper["a"].items()}},
        ]
        new_theta, new_state = optimizer.step(*moved)
        return {"theta": new_theta["a"], **{slot: held["a"] for slot, held in new_state.items() if slot != "step"}}

    for output, by_input in jacobians.items():
        for name, by_tensor in by_input.items():
            if not by_tensor:
                continue
            difference = (outputs(name, h)[output] - outputs(name, -h)[output]) / (2 * h)
            # h² = 1e-12 times third derivatives (up to 1e4 where v is 0.1), and rounding, 1e-16 / h of values near 10.
            torch.testing.assert_close(by_tensor["a"], difference, rtol=1e-6, atol=1e-8, msg=f"{output} by {name}")


def test_distance_can_fail() -> None:
    assert distance(torch.ones(2), torch.tensor([1.0, 2.0])) == 0.5
    assert distance(torch.ones(2), torch.zeros(2)) == float("inf")
    assert distance(torch.zeros(0), torch.zeros(0)) == 0
