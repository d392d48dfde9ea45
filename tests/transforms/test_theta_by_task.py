"""theta_0 of which tasks share some entries and have others of their own: heads of each task on one body."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from tests.compare import identical

T = 3


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    product = theta["body"] * theta["head"] * theta["mask"] * theta["gain"]
    return (product.sum() - batch) ** 2 + (theta["body"] ** 2).sum() * phi["decay"]


def given() -> dict[str, Any]:
    torch.manual_seed(0)
    mask = nn.Parameter(torch.randn(T, 2), requires_grad=False)  # held constant, each task its own
    gain = nn.Parameter(torch.tensor(0.3), requires_grad=False)  # held constant, shared
    theta_0 = {"body": torch.randn(2), "head": gimli.per_task(torch.randn(T, 2)), "mask": gimli.per_task(mask)}
    batches = [torch.randn(T) for _ in range(4)]
    return {
        "theta_0": {**theta_0, "gain": gain},
        "train_batches": batches[:3],
        "val_batch": batches[3],
        "phi_loss": {"decay": torch.tensor(0.2)},
        "phi_opt": {"lr": torch.tensor(0.1)},
    }


def of_task(t: int) -> dict[str, Any]:
    made = given()
    theta_0 = {**made["theta_0"], "head": made["theta_0"]["head"].value[t]}
    theta_0["mask"] = nn.Parameter(made["theta_0"]["mask"].value[t], requires_grad=False)
    batches = [b[t] for b in made["train_batches"]]
    return {**made, "theta_0": theta_0, "train_batches": batches, "val_batch": made["val_batch"][t]}


@pytest.mark.parametrize("rule", [gimli.optimizers.SGD(), gimli.optimizers.Adam()], ids=["SGD", "Adam"])
def test_what_is_shared_is_summed_and_what_is_not_stays_apart(rule: gimli.optimizers.Optimizer) -> None:
    problem = gimli.Problem(loss, loss, rule)
    each = [gimli.meta_gradient(problem, **of_task(t)) for t in range(T)]
    shared, apart = sum(one.B_0["body"] for one in each) / T, torch.stack([one.B_0["head"] for one in each]) / T
    for tasks in (T, gimli.Tasks(T, chunk=2), gimli.Tasks(T, chunk=1)):
        result = gimli.meta_gradient(problem, **given(), tasks=tasks)
        torch.testing.assert_close(result.B_0, {"body": shared, "head": apart}, rtol=1e-12, atol=1e-14)
        assert {k: tuple(v.shape) for k, v in result.theta_J.items()} == {
            "body": (T, 2),
            "head": (T, 2),
            "mask": (T, 2),
            "gain": (),
        }


@pytest.mark.parametrize("memory", [gimli.memory.StoreStates(), gimli.memory.Checkpoint(1)])
def test_every_schedule_gives_its_bits(memory: gimli.memory.Schedule) -> None:
    problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())
    expected = gimli.meta_gradient(problem, **given(), tasks=T)
    assert identical(gimli.meta_gradient(problem, **given(), tasks=T, memory=memory).B_0, expected.B_0)


def test_unroll_and_verify_follow() -> None:
    problem, made = gimli.Problem(loss, loss, gimli.optimizers.Adam()), given()
    exact = gimli.meta_gradient(problem, **given(), tasks=T).B_0
    body, heads = made["theta_0"]["body"].requires_grad_(), made["theta_0"]["head"].value.requires_grad_()
    gimli.unroll(problem, **made, tasks=T).backward()
    assert identical({"body": body.grad, "head": heads.grad}, exact)
    gimli.verify(problem, **given(), tasks=T).assert_ok()


def test_an_entry_without_the_tasks_is_refused() -> None:
    problem, made = gimli.Problem(loss, loss, gimli.optimizers.SGD()), given()
    made["theta_0"]["head"] = gimli.per_task(torch.randn(2, 2))
    with pytest.raises(ArgumentError, match=r"theta_0\['head'\].*leading dimension of 3 tasks.*\[2, 2\]"):
        gimli.meta_gradient(problem, **made, tasks=T)
    with pytest.raises(ArgumentError, match="tasks=T beside what is marked per_task"):
        gimli.meta_gradient(problem, **given())
