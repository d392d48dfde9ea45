"""Dicts as modules keep them, and parameters of several dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.optimizers import SGD, Adam
from tests.compare import identical


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return (theta["w"] ** 2).sum() * phi["scale"].exp() + (theta["v"].double() - 1).pow(4).sum()


def given() -> dict[str, Any]:
    return {
        "theta_0": {"w": torch.tensor([0.5, -1.0]), "v": torch.tensor([0.3, 0.2, 0.1])},
        "train_batches": [None] * 3,
        "val_batch": None,
        "phi_loss": {"scale": torch.tensor(0.1)},
        "phi_opt": {"lr": torch.tensor(0.1)},
    }


def as_parameters(values: dict[str, Tensor]) -> nn.ParameterDict:
    return nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in values.items()})


@pytest.mark.parametrize("name", ["theta_0", "phi_loss", "phi_opt"])
def test_a_parameter_dict_is_a_dict(name: str) -> None:
    problem, made = gimli.Problem(loss, loss, Adam()), given()
    expected = gimli.meta_gradient(problem, **made)
    module = as_parameters(made[name])
    changed = {**given(), name: module}
    result = gimli.meta_gradient(problem, **changed)
    assert all(identical(getattr(result, A), getattr(expected, A)) for A in ("A_opt", "A_loss", "B_0"))
    gimli.unroll(problem, **changed).backward()
    found = {k: p.grad for k, p in module.items()}
    assert identical(found, {"theta_0": expected.B_0, "phi_loss": expected.A_loss, "phi_opt": expected.A_opt}[name])
    gimli.verify(problem, **changed).assert_ok()


@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates(), gimli.memory.Checkpoint(1)])
@pytest.mark.parametrize("rule", [SGD(momentum=0.9), Adam()], ids=["SGD", "Adam"])
def test_parameters_of_several_dtypes(rule: gimli.optimizers.Optimizer, memory: Any) -> None:
    """Each keeps its own; the numbers are those of double precision to the rounding of the least precise."""
    made, problem = given(), gimli.Problem(loss, loss, rule)
    exact = gimli.meta_gradient(problem, **made, memory=memory)
    made["theta_0"]["w"] = made["theta_0"]["w"].float()
    result = gimli.meta_gradient(problem, **made, memory=memory)
    for found in (result.B_0, result.theta_J):
        assert {k: v.dtype for k, v in found.items()} == {"w": torch.float32, "v": torch.float64}
    for k, v in exact.B_0.items():
        torch.testing.assert_close(result.B_0[k].double(), v, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.A_opt["lr"].double(), exact.A_opt["lr"], rtol=1e-5, atol=1e-6)
    report = gimli.verify(problem, **made)
    assert report.ok, report


def test_tasks_and_unroll_of_several_dtypes() -> None:
    made, problem = given(), gimli.Problem(loss, loss, Adam())
    made["theta_0"]["w"] = made["theta_0"]["w"].float().requires_grad_()
    made["train_batches"] = [torch.zeros(2)] * 3
    made["val_batch"] = torch.zeros(2)
    exact = gimli.meta_gradient(problem, **made, tasks=2).B_0
    gimli.unroll(problem, **made, tasks=2).backward()
    assert identical({"w": made["theta_0"]["w"].grad}, {"w": exact["w"]})
