"""Meta-parameters in float32 beside theta in float64: `torch.tensor(0.1)` is one, unless somebody says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD, Adam, RMSprop
from gimli_core.verification import Verdict, verify

STEPS = 20
X = torch.linspace(-2, 2, 60, dtype=torch.float64).reshape(20, 3).sin()
Y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.1

LR: tuple[Any, ...] = ("A_opt", "lr")
L2: tuple[Any, ...] = ("A_loss", "log_l2")


def loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (batch[0] @ theta["w"] - batch[1]).square().mean() + phi["log_l2"].exp() * theta["w"].square().sum()


def asked(optimizer: Any, lr: Any, log_l2: Tensor, **more: Any) -> dict[str, Any]:
    problem = gimli.Problem(loss, loss, optimizer)
    theta_0 = {"w": torch.zeros(3, dtype=torch.float64)}
    called = {"problem": problem, "theta_0": theta_0, "train_batches": lambda j: (X, Y), "val_batch": (X, Y)}
    return {**called, "steps": STEPS, "phi_opt": {"lr": lr}, "phi_loss": {"log_l2": log_l2}, **more}


DOUBLE = torch.tensor(-4.0, dtype=torch.float64)


def single(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float32)


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9), Adam(), RMSprop()], ids=lambda rule: repr(rule)[:22])
@pytest.mark.parametrize("lr", [single(0.01), {"w": torch.full((3,), 0.01, dtype=torch.float32)}], ids=["0-d", "each"])
def test_what_is_summed_in_float32_is_held_to_its_units(optimizer: Any, lr: Any) -> None:
    report = verify(**asked(optimizer, lr, DOUBLE))
    report.assert_ok()
    within = {c.key[:2]: c.applied for c in report.checks if c.oracle == "autograd"}
    assert 1e-4 < within[LR] < 2e-4
    assert within[L2] < 1e-9  # a rule computes in theta's dtype
    assert within["B_0", "w"] < 1e-9
    assert any('A_opt["lr"]' in note and "in float32" in note and "theta's dtype" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adam()], ids=["SGD", "Adam"])
def test_a_rate_of_two_bytes_is_as_one_of_four(optimizer: Any, dtype: torch.dtype) -> None:
    """Its derivative is summed in float32, and nothing else is computed in less than theta's dtype."""
    report = verify(**asked(optimizer, torch.tensor(0.01, dtype=dtype), DOUBLE))
    report.assert_ok()
    within = {c.key[:2]: c.applied for c in report.checks if c.oracle == "autograd"}
    assert 1e-4 < within[LR] < 2e-4
    assert within["B_0", "w"] < 1e-9


@pytest.mark.parametrize("lr", [single(0.01), 0.01], ids=["float32", "a number"])
def test_losses_that_compute_with_float32_are_held_to_its_units(lr: Any) -> None:
    """exp(phi) is in float32, and moves theta by 1e-10."""
    report = verify(**asked(SGD(), lr, single(-4.0)))
    report.assert_ok()
    assert all(1e-4 < c.applied < 2e-4 for c in report.checks if c.oracle == "autograd")
    assert any("works in float32" in note for note in report.notes)


@pytest.mark.parametrize(("name", "wrong"), [("A_opt", 1e-3), ("A_loss", 1e-8), ("B_0", 1e-8)])
def test_an_error_beyond_those_units_is_told_and_one_of_the_rest_beyond_its_own(name: str, wrong: float) -> None:
    made = asked(SGD(), single(0.01), DOUBLE)
    exact = gimli.meta_gradient(**made)
    right = {"A_opt": exact.A_opt, "A_loss": exact.A_loss, "B_0": exact.B_0}
    verify(**made, claimed=right, oracles=()).assert_ok()
    off = {k: v * (1 + wrong) for k, v in right[name].items()}
    told = verify(**made, claimed={**right, name: off}, oracles=())
    assert {c.key[0] for c in told.checks if c.verdict is Verdict.DISAGREES} == {name}


def test_a_tolerance_that_somebody_gives_counts_for_all() -> None:
    assert not verify(**asked(SGD(), single(0.01), DOUBLE), tolerance=1e-12).ok


def test_meta_parameters_in_float64_beside_theta_in_float32() -> None:
    x, y = X.float(), Y.float()
    made = asked(Adam(), torch.tensor(0.01, dtype=torch.float64), DOUBLE)
    made |= {"theta_0": {"w": torch.zeros(3, dtype=torch.float32)}, "train_batches": lambda j: (x, y)}
    report = verify(**{**made, "val_batch": (x, y)})
    report.assert_ok()
    assert not any("summed in" in note for note in report.notes)


def test_a_warm_state_in_float32() -> None:
    ones = {"w": torch.ones(3, dtype=torch.float32)}
    verify(
        **asked(Adam(), 0.01, DOUBLE, state_0={"step": single(0.0), "exp_avg": ones, "exp_avg_sq": ones})
    ).assert_ok()
