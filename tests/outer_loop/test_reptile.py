"""Reptile on a quadratic: theta_J = c + (1 - lr)^J (theta_0 - c)."""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from tests.outer_loop.problems import TARGETS, learned_rate, leaves, problem

LR, J = 0.3, 4


def bowl(theta, phi, center):
    return ((theta["w"] - center) ** 2).sum() / 2


BOWL = gimli.Problem(bowl, bowl, gimli.optimizers.SGD(lr=LR))


def test_the_closed_form():
    start, center = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([0.5, 0.25])
    estimator = gimli.Reptile(
        BOWL, {"w": start}, lambda phi, c: {"theta_0": phi, "train_batches": [c] * J, "val_batch": c}
    )
    result = estimator(center)
    expected = (1 - (1 - LR) ** J) * (start - center).detach()
    torch.testing.assert_close(result.A["w"], expected, rtol=1e-14, atol=0)
    assert torch.equal(start.grad, result.A["w"])
    assert "Reptile" in result.approximation
    assert isinstance(result, gimli.MetaGradient)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("own", [False, True])
def test_tasks(reduce, own):
    centers = torch.tensor([[0.5, 0.25], [1.0, 1.0], [-1.0, 0.0]])
    start = torch.tensor([1.0, -2.0]) if not own else torch.arange(6.0).reshape(3, 2)
    phi = {"w": start.requires_grad_()}

    def inner(phi, centers):
        theta_0 = gimli.per_task(dict(phi)) if own else phi
        return {"theta_0": theta_0, "train_batches": lambda j: centers, "val_batch": centers}

    A = gimli.Reptile(BOWL, phi, inner, steps=J, tasks=gimli.Tasks(3, reduce=reduce))(centers).A["w"]
    of_each = (1 - (1 - LR) ** J) * (start.detach() - centers) / (3 if reduce == "mean" else 1)
    torch.testing.assert_close(A, of_each if own else of_each.sum(0), rtol=1e-14, atol=1e-15)


def test_the_outer_loop_steps_towards_the_end_of_the_inner_one():
    start, center, rate = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([0.5, 0.25]), 0.5
    begin = start.detach().clone()
    estimator = gimli.Reptile(
        BOWL, {"w": start}, lambda phi, c: {"theta_0": phi, "train_batches": [c] * J, "val_batch": c}
    )
    gimli.OuterLoop(estimator, [center], torch.optim.SGD([start], lr=rate), steps=3).run()
    shrink = 1 - rate * (1 - (1 - LR) ** J)
    torch.testing.assert_close(start.detach(), center + shrink**3 * (begin - center), rtol=1e-13, atol=0)


def test_a_start_that_is_computed():
    """theta_0 = 2 phi: the chain rule goes on from theta_0."""
    center = torch.tensor([0.5, 0.25])
    phi = {"half": torch.tensor([0.5, -1.0], requires_grad=True)}

    def inner(phi, c):
        return {"theta_0": {"w": 2 * phi["half"]}, "train_batches": [c] * J, "val_batch": c}

    A = gimli.Reptile(BOWL, phi, inner)(center).A["half"]
    expected = 2 * (1 - (1 - LR) ** J) * (2 * phi["half"] - center).detach()
    torch.testing.assert_close(A, expected, rtol=1e-14, atol=0)


def test_what_reptile_cannot_learn_is_refused():
    with pytest.raises(ArgumentError, match="'log_lr' besides"):
        gimli.Reptile(problem(), leaves(), learned_rate, steps=3)(TARGETS)
