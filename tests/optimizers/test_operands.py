"""Numbers of a rule that are made into tensors once: the bits of numbers, and no trace of where they were made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.optimizers import Adam
from gimli_core.optimizers.rules.parts import operand


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [0.9, 1 - 0.999, 1e-8, 1 / 3, 0.0])
def test_the_bits_are_those_of_a_number(number: float, dtype: torch.dtype) -> None:
    x = torch.randn(1000).to(dtype)
    for by_number, by_operand in (
        (x * number, x * operand(number, x)),
        (x + number, x + operand(number, x)),
        (x / (1 + number), x / operand(1 + number, x)),
    ):
        assert by_operand.dtype == dtype
        assert torch.equal(by_number, by_operand)


def test_a_tensor_stays_what_it_is() -> None:
    number = torch.tensor(0.9, requires_grad=True)
    assert operand(number, torch.ones(2)) is number


def test_a_step_in_inference_mode_leaves_nothing_that_no_graph_can_hold() -> None:
    """What it made is met again in a run whose gradient is differentiated."""
    adam, theta_0 = Adam(lr=0.1, betas=(0.8123, 0.9123), eps=0.0123), {"a": torch.rand(3), "b": torch.rand(2)}
    with torch.inference_mode():
        hyper: Any = {k: {n: torch.tensor(v) for n, v in adam.hyperparameters().items()} for k in theta_0}
        adam.step(theta_0, adam.initial_state(theta_0, hyper), theta_0, hyper)

    def loss(theta: dict[str, Tensor], phi: Any, batch: Any) -> Tensor:
        return (theta["a"] ** 4).sum() + theta["b"].square().sum()

    lr = torch.tensor(0.1, requires_grad=True)
    L = gimli.unroll(gimli.Problem(loss, loss, adam), theta_0, [None] * 2, None, phi_opt={"lr": lr}, derivatives=2)
    (first,) = torch.autograd.grad(L, lr, create_graph=True)
    (second,) = torch.autograd.grad(first, lr)
    assert torch.isfinite(second)
