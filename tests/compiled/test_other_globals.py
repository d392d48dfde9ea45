"""What is compiled sees a global change, or is not compiled: functions whose globals are not those of their module."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gimli_core as gimli
from gimli_core.compiled.compiler.other_globals import not_watched

SOURCE = """
import torch
from torch import nn
import gimli_core as gimli

SCALE = 2.0

def half(x):
    return SCALE * x / 2

class Scaled(nn.Linear):
    def forward(self, x):
        return SCALE * super().forward(x)

class Rule(gimli.optimizers.DerivedOptimizer):
    lr: float = 0.1

    def step(self, theta, state, G, hyper):
        return {k: theta[k] - SCALE * 0.1 * G[k] for k in theta}, state

net = Scaled(2, 1).requires_grad_(False)

def direct(theta, phi, batch):
    return SCALE * ((theta["w"] - batch) ** 2).sum()

def through_another(theta, phi, batch):
    return half((theta["w"] - batch) ** 2).sum()

def through_a_module(theta, phi, batch):
    return ((theta["w"] * net(batch)) ** 2).sum()

def without_values(theta, phi, batch):
    return torch.square(theta["w"] - batch).sum()
"""


def run_by_itself() -> dict[str, Any]:
    """The functions as a script has them that is started anew: their globals are a dict of their own."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(SOURCE, names)
    return names


@pytest.mark.parametrize("loss", ["direct", "through_another", "through_a_module"])
def test_a_global_of_another_dict_is_not_compiled_in(loss: str, caplog: pytest.LogCaptureFixture) -> None:
    names = run_by_itself()
    problem = gimli.Problem(names[loss], names[loss], gimli.optimizers.SGD(lr=0.1), modules=[names["net"]])
    batch = torch.ones(2)

    def loss_by(compile: Any) -> torch.Tensor:
        theta = {"w": torch.full((2,), 0.3)}
        return gimli.meta_gradient(problem, theta, [batch] * 2, batch, compile=compile).val_loss

    first = loss_by("steps")
    assert "from globals that are not its module's" in caplog.text
    names["SCALE"] = 3.0
    assert loss_by("steps") == loss_by(False) != first


def test_a_rule_of_another_dict_is_not_compiled_in(caplog: pytest.LogCaptureFixture) -> None:
    names = run_by_itself()
    problem = gimli.Problem(names["without_values"], names["without_values"], names["Rule"]())
    gimli.meta_gradient(problem, {"w": torch.zeros(2)}, [torch.ones(2)], torch.ones(2), compile="steps")
    assert "Rule.step reads 'SCALE'" in caplog.text


def test_functions_of_a_module_and_those_that_read_no_values_may_be_compiled() -> None:
    assert not_watched([run_by_itself()["without_values"], run_by_itself]) is None
