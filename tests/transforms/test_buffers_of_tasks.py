"""Losses that change buffers under `tasks=`: BatchNorm's running statistics, each task its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from tests.compare import identical

T, J = 3, 3


def made() -> tuple[nn.Module, gimli.Problem, dict[str, Any]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    def train_loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        return ((functional_call(net.train(), theta, batch[0]) - batch[1]) ** 2).mean()

    def val_loss(theta: Any, phi: Any, batch: Any) -> Tensor:  # reads what the inner steps left in the statistics
        return ((functional_call(net.eval(), theta, batch[0]) - batch[1]) ** 2).mean()

    batches = [(torch.randn(T, 8, 3), torch.randn(T, 8, 1)) for _ in range(J + 1)]
    problem = gimli.Problem(train_loss, val_loss, gimli.optimizers.SGD(lr=0.1), modules=[net])
    theta_0 = dict(net.named_parameters())
    return net, problem, {"theta_0": theta_0, "train_batches": batches[:J], "val_batch": batches[J]}


def of_task(arguments: dict[str, Any], t: int) -> dict[str, Any]:
    batches = [tuple(part[t] for part in batch) for batch in arguments["train_batches"]]
    val = tuple(part[t] for part in arguments["val_batch"])
    return {**arguments, "train_batches": batches, "val_batch": val}


@pytest.mark.parametrize("tasks", [T, gimli.Tasks(T, chunk=1)], ids=["all at once", "one at a time"])
@pytest.mark.parametrize("memory", [None, gimli.memory.Checkpoint(1)], ids=["kept", "replayed"])
def test_every_task_has_statistics_of_its_own(tasks: Any, memory: Any) -> None:
    net, problem, arguments = made()
    before = {k: v.clone() for k, v in net.named_buffers()}
    each = [gimli.meta_gradient(problem, **of_task(arguments, t), memory=memory) for t in range(T)]
    for _ in range(2):  # the second call knows at once
        result = gimli.meta_gradient(problem, **arguments, tasks=tasks, memory=memory)
        mean = {k: torch.stack([one.B_0[k] for one in each]).mean(0) for k in each[0].B_0}
        torch.testing.assert_close(result.B_0, mean, rtol=1e-12, atol=1e-14)
        for k in each[0].buffers_J:
            assert torch.equal(result.buffers_J[k], torch.stack([one.buffers_J[k] for one in each])) or all(
                torch.equal(one.buffers_J[k], result.buffers_J[k])
                for one in each  # a count of batches
            )
    assert identical(dict(net.named_buffers()), before)


@pytest.mark.parametrize("memory", [None, gimli.memory.Checkpoint(1)], ids=["kept", "replayed"])
def test_without_a_check_it_is_found_out_by_the_run(memory: Any) -> None:
    net, problem, arguments = made()
    before = {k: v.clone() for k, v in net.named_buffers()}
    exact = gimli.meta_gradient(problem, **arguments, tasks=T)
    _, fresh, _ = made()
    found = gimli.meta_gradient(fresh, **arguments, tasks=T, memory=memory, check=False)
    assert identical(found.B_0, exact.B_0)
    net, fresh, arguments = made()
    gimli.unroll(fresh, **arguments, tasks=T, check=False).backward()
    torch.testing.assert_close({k: p.grad for k, p in net.named_parameters()}, exact.B_0, rtol=1e-12, atol=1e-14)
    assert identical(dict(net.named_buffers()), before)


def test_adapt_too() -> None:
    net, problem, arguments = made()
    before = {k: v.clone() for k, v in net.named_buffers()}
    each = [
        gimli.adapt(problem, **{k: v for k, v in of_task(arguments, t).items() if k != "val_batch"}) for t in range(T)
    ]
    for _ in range(2):
        found = gimli.adapt(problem, arguments["theta_0"], arguments["train_batches"], tasks=T)
        for k, v in found.theta_J.items():
            torch.testing.assert_close(v, torch.stack([one.theta_J[k] for one in each]), rtol=1e-12, atol=1e-14)
    assert identical(dict(net.named_buffers()), before)


def test_unroll_too_and_verify_says_the_way_out() -> None:
    net, problem, arguments = made()
    exact = gimli.meta_gradient(problem, **arguments, tasks=T).B_0
    gimli.unroll(problem, **arguments, tasks=T).backward()
    torch.testing.assert_close({k: p.grad for k, p in net.named_parameters()}, exact, rtol=1e-12, atol=1e-14)
    with pytest.raises(ArgumentError, match="Verify one task alone"):
        gimli.verify(problem, **arguments, tasks=T)
    gimli.verify(problem, **of_task(arguments, 1)).assert_ok()
