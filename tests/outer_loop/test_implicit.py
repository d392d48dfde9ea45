"""The implicit estimator against closed forms and against long unrolls."""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from tests.outer_loop.problems import end_of, outer_loop, same

DATA = torch.tensor([[1.0, 0.5], [0.2, -1.0], [0.7, 0.3]], dtype=torch.float64)
LABELS = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)


def ridge(theta, phi, batch):
    x, y = batch
    return ((x @ theta["w"] - y) ** 2).sum() / 2 + phi["log_l2"].exp() * (theta["w"] ** 2).sum() / 2


def fit(theta, phi, batch):
    x, y = batch
    return ((x @ theta["w"] - y) ** 2).sum() / 2


PROBLEM = gimli.Problem(ridge, fit, gimli.optimizers.SGD(lr=0.3))
VAL = DATA.flip(0) + 0.1, LABELS


def leaf(value=-1.0):
    return {"log_l2": torch.tensor(value, dtype=torch.float64, requires_grad=True)}


def inner(phi, drawn):
    zeros = torch.zeros(2, dtype=torch.float64)
    return {"theta_0": {"w": zeros}, "train_batches": lambda j: (DATA, LABELS), "val_batch": VAL, "phi_loss": phi}


def closed_form(log_l2):
    """dL/dlog_l2 through w = (X'X + l2)^-1 X'y, by autograd."""
    w = torch.linalg.solve(DATA.T @ DATA + log_l2.exp() * torch.eye(2, dtype=torch.float64), DATA.T @ LABELS)
    (gradient,) = torch.autograd.grad(fit({"w": w}, {}, VAL), log_l2)
    return gradient


@pytest.mark.parametrize("solver", [None, gimli.implicit.Dense(), gimli.implicit.MINRES()])
def test_ridge_regression(solver):
    phi = leaf()
    result = gimli.Implicit(PROBLEM, phi, inner, solver=solver, steps=200)(None)
    torch.testing.assert_close(result.A["log_l2"], closed_form(phi["log_l2"]), rtol=1e-7, atol=0)
    assert torch.equal(phi["log_l2"].grad, result.A["log_l2"])
    assert isinstance(result, gimli.MetaGradient)
    assert result.report.inner.relative < 1e-6


def test_damping_is_named():
    result = gimli.Implicit(PROBLEM, leaf(), inner, damping=0.1, steps=200)(None)
    assert "damped" in result.approximation


@pytest.mark.parametrize("tasks", [None, 2])
def test_the_start_of_imaml_s_problem_is_learned(tasks):
    """phi = theta_0, the centre; a frozen entry beside it; computed from a leaf. Oracle: an unroll to convergence."""

    def loss(theta, phi, target):
        return torch.cosh(theta["w"] * theta["c"] - target).sum()

    def starting(phi, drawn):
        frozen = torch.nn.Parameter(torch.tensor([0.9, 1.1], dtype=torch.float64), requires_grad=False)
        target = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=torch.float64)
        target = target[0] if tasks is None else target
        return {"theta_0": {"c": frozen, "w": 2 * phi["half"]}, "train_batches": lambda j: target, "val_batch": target}

    problem = gimli.proximal(gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.2)), 0.5)
    phi = {"half": torch.tensor([0.1, -0.2], dtype=torch.float64, requires_grad=True)}
    options = {"steps": 150} if tasks is None else {"steps": 150, "tasks": tasks}
    found = gimli.Implicit(problem, phi, starting, **options)(None).A["half"]
    expected = gimli.Unrolled(problem, phi, starting, **options)(None).A["half"]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def test_hyperparameters_of_the_rule_are_refused_with_the_reason():
    phi = {**leaf(), "lr": torch.tensor(0.3, dtype=torch.float64, requires_grad=True)}

    def learned(phi, drawn):
        return {**inner(phi, drawn), "phi_loss": {"log_l2": phi["log_l2"]}, "phi_opt": {"lr": phi["lr"]}}

    with pytest.raises(ArgumentError, match="their derivative is 0 at a fixed point"):
        gimli.Implicit(PROBLEM, phi, learned, steps=10)(None)


def test_a_loop_that_has_not_converged_is_refused():
    with pytest.raises(gimli.errors.GimliError, match="unroll"):
        gimli.Implicit(PROBLEM, leaf(), inner, steps=1)(None)


def test_weights_along_the_way_are_refused():
    with pytest.raises(ArgumentError, match="val_weights"):
        gimli.Implicit(PROBLEM, leaf(), inner, steps=10, val_weights=[0.1] * 10)(None)


@pytest.mark.parametrize("warm_start", [False, True])
def test_in_an_outer_loop_that_goes_on_from_a_checkpoint(warm_start, tmp_path):
    def loop(**options):
        torch.manual_seed(7)
        phi = leaf()
        estimator = gimli.Implicit(PROBLEM, phi, inner, steps=100, warm_start=warm_start)
        plain = {"evaluate": None, "evaluate_every": None, "early_stopping": None, "tensorboard": False}
        return outer_loop(phi=phi, estimator=estimator, **plain, **options)

    expected = end_of(loop())
    loop(steps=4, out=tmp_path).run()
    assert same(end_of(loop(out=tmp_path)), expected)
    assert expected["records"][0]["val_loss"] > expected["records"][-1]["val_loss"]
