"""Compiled steps draw the random numbers that eager ones draw, and leave the generators where those leave them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import gimli_core as gimli
from gimli_core.memory import Checkpoint, StoreStates
from gimli_core.optimizers import SGD
from tests.compare import agree
from tests.problems import tanh_loss, tanh_network

SCHEDULES: dict[str, dict[str, Any]] = {"states": {"memory": StoreStates()}, "two of them": {"memory": Checkpoint(2)}}


def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return tanh_loss(theta, phi, batch) * torch.rand(())


def and_the_next_number(**call: Any) -> tuple[gimli.MetaGradient, float]:
    torch.manual_seed(0)
    return gimli.meta_gradient(**call), torch.rand(()).item()


def left_alike(call: dict[str, Any], **more: Any) -> None:
    call["problem"] = gimli.Problem(noisy, tanh_loss, SGD())
    eager, expected = and_the_next_number(**call, compile=False)
    for _ in range(2):
        found, then = and_the_next_number(**call, **more)
        agree(found, eager)
        assert then == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_generator_is_left_where_an_eager_run_leaves_it(schedule: str, graphs: list[GraphModule]) -> None:
    left_alike(tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}), compile="steps", **SCHEDULES[schedule])


@pytest.mark.long
def test_and_of_steps_without_a_schedule() -> None:
    left_alike(tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}), compile="steps")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_module_that_draws_in_a_later_call(schedule: str, graphs: list[GraphModule]) -> None:
    """What was found out of the first graph, that nothing is drawn, is not so of the second."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).eval()

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        x, y = batch
        return (torch.func.functional_call(net, theta, (x,))[:, 0] - y).square().mean()

    call = tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}, phi_loss=None)
    call |= {"problem": gimli.Problem(loss, loss, SGD()), "theta_0": dict(net.named_parameters())}
    for training in (False, True, False, True):
        net.train(training)
        found, then = and_the_next_number(**call, compile="steps", **SCHEDULES[schedule])
        eager, expected = and_the_next_number(**call, compile=False)
        agree(found, eager)
        assert then == expected
