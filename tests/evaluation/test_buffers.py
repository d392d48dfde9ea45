"""Metrics read the buffers that the inner loop has left, as L_val does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.errors import ArgumentError


def made() -> tuple[nn.Module, gimli.Problem]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def train_loss(theta: Any, phi: Any, batch: Tensor) -> Tensor:
        return functional_call(net.train(), theta, (batch,)).square().mean()

    def val_loss(theta: Any, phi: Any, batch: Tensor) -> Tensor:
        return functional_call(net.eval(), theta, (batch,)).square().mean()

    return net, gimli.Problem(train_loss, val_loss, gimli.optimizers.SGD(lr=0.1), modules=[net])


def test_running_statistics_of_the_inner_loop_are_what_is_evaluated() -> None:
    net, problem = made()
    x, before = torch.randn(8, 3), {k: v.clone() for k, v in net.named_buffers()}
    exact = gimli.meta_gradient(problem, dict(net.named_parameters()), [x] * 3, x).val_loss.item()
    found = gimli.evaluate(problem, dict(net.named_parameters()), [x] * 3, x)
    assert str(found).startswith(f"Evaluation(loss {exact:.4g}")
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())


def test_tasks_with_statistics_of_their_own_are_refused() -> None:
    net, problem = made()
    x = torch.randn(2, 8, 3)
    with pytest.raises(ArgumentError, match="one task at a time"):
        gimli.evaluate(problem, dict(net.named_parameters()), [x] * 3, x, tasks=gimli.Tasks(2, chunk=1))
