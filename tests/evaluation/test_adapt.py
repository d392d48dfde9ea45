"""The inner loop alone, and metrics of what comes out of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory.meters import OBJECT, LiveBytes
from gimli_core.notation import Tensors
from gimli_core.optimizers import Adam

T, J = 6, 5


def loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return ((torch.tanh(x @ theta["w"] + theta["fixed"]) @ theta["v"] - y) ** 2).mean() * phi["scale"]


def near(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return ((torch.tanh(x @ theta["w"] + theta["fixed"]) @ theta["v"] - y).abs() < 0.8).double().mean()


def given() -> dict[str, Any]:
    batches = [(torch.randn(T, 8, 3), torch.randn(T, 8)) for _ in range(J + 1)]
    return {
        "problem": gimli.Problem(loss, loss, Adam(lr=0.1)),
        "theta_0": {"w": torch.randn(3, 4), "v": torch.randn(4), "fixed": nn.Parameter(torch.randn(4), False)},
        "train_batches": batches[:-1],
        "val_batch": batches[-1],
        "phi_loss": {"scale": torch.tensor(0.9)},
    }


def forwards(made: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in made.items() if k != "val_batch"}


@pytest.mark.parametrize("tasks", [T, gimli.Tasks(T, chunk=4)])
def test_adapt_ends_where_the_meta_gradient_does(tasks: Any) -> None:
    made = given()
    expected = gimli.meta_gradient(**made, tasks=tasks)
    found = gimli.adapt(**forwards(made), tasks=tasks)
    assert type(found) is gimli.Trajectory
    for name in ("theta_J", "state_J", "train_losses"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    assert found.val_loss.isnan()
    assert not any(v.requires_grad for v in found.theta_J.values())


def test_adapt_calls_no_val_loss() -> None:
    made = forwards(given())
    made["problem"] = gimli.Problem(loss, lambda theta, phi, batch: 1 / 0, Adam(lr=0.1))
    assert len(gimli.adapt(**made, tasks=T).train_losses) == J


def test_the_memory_of_adapt_does_not_grow_with_the_steps() -> None:
    x, y = torch.randn(500, 3), torch.randn(500)
    made = {**forwards(given()), "train_batches": lambda j: (x, y)}

    def peak(steps: int) -> int:
        with LiveBytes() as meter:
            gimli.adapt(**made, steps=steps)
        return meter.peak

    peak(2)
    assert peak(40) <= peak(4) + 40 * (OBJECT + 64)  # but for a loss a step


def test_evaluate_has_the_metrics_of_each_task_their_mean_and_interval() -> None:
    made = given()
    metrics = {"loss": loss, "near": near, "norm": lambda theta, phi, batch: theta["w"].norm()}
    found = gimli.evaluate(**made, metrics=metrics, tasks=T)
    theta_J = gimli.meta_gradient(**made, tasks=T).theta_J
    for name, metric in metrics.items():
        by_hand = []
        for t in range(T):
            theta = {k: v if k == "fixed" else v[t] for k, v in theta_J.items()}
            by_hand.append(metric(theta, made["phi_loss"], tuple(v[t] for v in made["val_batch"])))
        expected = torch.stack(by_hand).detach()
        torch.testing.assert_close(found.metrics[name], expected, rtol=1e-13, atol=0)
        assert math.isclose(found.mean[name], expected.mean().item(), rel_tol=1e-13)
        assert math.isclose(found.interval[name], 1.959964 * expected.std().item() / math.sqrt(T), rel_tol=1e-12)
    assert f"norm {found.mean['norm']:.4g} ± " in repr(found)
    assert "6 tasks" in repr(found)


def test_a_metric_that_vmap_cannot_do_is_called_for_each_task() -> None:
    made = given()

    def branching(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> float:
        return 1.0 if near(theta, phi, batch) > 0.5 else 0.0

    found = gimli.evaluate(**made, metrics={"pass": branching, "near": near}, tasks=T)
    assert torch.equal(found.metrics["pass"], (found.metrics["near"] > 0.5).double())


def test_without_tasks_there_is_one_and_no_interval() -> None:
    made = given()
    one = {
        **made,
        "train_batches": [(x[0], y[0]) for x, y in made["train_batches"]],
        "val_batch": tuple(v[0] for v in made["val_batch"]),
    }
    found = gimli.evaluate(**one)
    assert found.metrics["loss"].shape == (1,)
    assert math.isclose(found.mean["loss"], gimli.meta_gradient(**one).val_loss.item(), rel_tol=1e-13)
    assert math.isnan(found.interval["loss"])
    assert "1 task)" in repr(found)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({}, "metrics: expected a dict"),
        (near, "metrics: expected a dict"),
        ({"near": 3}, "metrics: expected a dict"),
        ({"w": lambda theta, phi, batch: theta["w"]}, "w: expected to return a scalar for one task"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        gimli.evaluate(**given(), metrics=metrics, tasks=T)
