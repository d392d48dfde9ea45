"""Modes of the caller's around a call, and what there is nothing to check of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD, Adam, ClipNorm


def square(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    return torch.stack([(v - 1).square().sum() for v in theta.values()]).sum()


def test_verify_and_trace_without_gradients_around_them() -> None:
    problem, theta_0 = gimli.Problem(square, square, SGD(lr=0.1)), {"w": torch.tensor([3.0, 2.0])}
    with torch.no_grad():
        assert gimli.verify(problem, theta_0, [None] * 2, None, phi_opt={"lr": 0.1}).ok
        assert gimli.trace(gimli.step_through(problem, theta_0, [None] * 2, None)).error is None


def test_verify_of_nothing_is_refused() -> None:
    problem = gimli.Problem(square, square, SGD(lr=0.1))
    with pytest.raises(ArgumentError, match="at least one number"):
        gimli.verify(problem, {"w": torch.zeros(0)}, [None], None)


@pytest.mark.parametrize("rule", [SGD(momentum=0.9), Adam()])
def test_counts_and_numbers_are_not_made_where_the_default_device_is(rule: Any) -> None:
    problem, theta_0 = gimli.Problem(square, square, rule), {"w": torch.tensor([3.0, 2.0])}
    expected = gimli.meta_gradient(problem, theta_0, [None] * 3, None, phi_opt={"lr": 0.1})
    with torch.device("meta"):
        result = gimli.meta_gradient(
            gimli.Problem(square, square, rule), theta_0, [None] * 3, None, phi_opt={"lr": 0.1}
        )
    assert torch.equal(result.B_0["w"], expected.B_0["w"])
    assert torch.equal(result.A_opt["lr"], expected.A_opt["lr"])


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_a_norm_beside_an_empty_tensor(norm_type: float) -> None:
    problem = gimli.Problem(square, square, ClipNorm(SGD(lr=0.1), max_norm=0.1, norm_type=norm_type))
    theta_0 = {"w": torch.tensor([3.0, 2.0]), "e": torch.zeros(0)}
    full = gimli.meta_gradient(problem, theta_0, [None] * 2, None, phi_opt={"max_norm": 0.1})
    alone = gimli.meta_gradient(problem, {"w": theta_0["w"]}, [None] * 2, None, phi_opt={"max_norm": 0.1})
    assert torch.equal(full.B_0["w"], alone.B_0["w"])
    assert gimli.verify(problem, theta_0, [None] * 2, None, phi_opt={"max_norm": 0.1}).ok
