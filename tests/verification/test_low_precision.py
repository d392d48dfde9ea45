"""Low precision as a stated mode: autocast in the inner loss, float32 outside of it, and what verify says of it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import gimli_core as gimli
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import SGD
from gimli_core.verification import Verdict
from tests.compare import assert_same
from tests.problems import tanh_loss

Call = dict[str, Any]


def half(theta: Any, phi: Any, batch: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return tanh_loss(theta, phi, batch)


def call_of(loss: Any) -> Call:
    torch.manual_seed(0)
    made = [(torch.randn(6, 3).float(), torch.randn(6).float()) for _ in range(4)]
    return {
        "problem": gimli.Problem(loss, tanh_loss, SGD(momentum=0.9)),
        "phi_opt": {"lr": torch.tensor(0.05)},
        "theta_0": {"w": torch.randn(3, 4).float(), "v": torch.randn(4).float(), "c": torch.tensor(0.3).float()},
        "train_batches": made[:-1],
        "val_batch": made[-1],
        "phi_loss": {"l2": torch.tensor(-2.0).float()},
    }


@pytest.mark.parametrize("memory", [StoreStates(), Checkpoint(1), Checkpoint(1, gradients=True)], ids=str)
def test_autocast_in_the_loss_leaves_all_else_in_float32(memory):
    found = gimli.meta_gradient(**call_of(half), memory=memory)
    for name in ("theta_J", "B_0", "A_loss", "state_J", "S_0"):
        leaves = torch.utils._pytree.tree_leaves(getattr(found, name))
        assert {x.dtype for x in leaves} <= {torch.float32, torch.float64}
        assert not any(x.dtype == torch.float64 and x.ndim for x in leaves)
    assert_same(found, gimli.meta_gradient(**call_of(half), memory=RetainGraphs()))


def test_autocast_around_unroll_is_there_again_in_backward():
    """Steps that are run again after the block has ended meet its mode: the same bits as where none is."""
    grads = []
    for memory in (RetainGraphs(), Checkpoint(1)):
        call = call_of(tanh_loss)
        theta = {n: v.requires_grad_() for n, v in call["theta_0"].items()}
        with torch.autocast("cpu", torch.bfloat16):
            L = gimli.unroll(**{**call, "theta_0": theta}, memory=memory)
        L.backward()
        grads.append([v.grad for v in theta.values()])
    assert all(map(torch.equal, *grads))


def test_verify_says_that_it_agrees_within_the_noise():
    report = gimli.verify(**call_of(half))
    assert report.ok, str(report)
    assert report.headline.startswith("agrees within the noise of bfloat16: up to ")
    assert any("the losses compute in bfloat16 (autocast)" in note for note in report.notes)
    assert not gimli.verify(**call_of(tanh_loss)).noise


def test_what_is_off_by_more_than_the_noise_disagrees():
    exact = gimli.meta_gradient(**call_of(half))
    for factor, agrees in ((1.001, True), (3.0, False)):
        claim = {"B_0": {"w": factor * exact.B_0["w"]}}
        report = gimli.verify(**call_of(half), claimed=claim, oracles=["autograd"])
        assert report.ok is agrees
        assert report.headline.startswith("agrees within" if agrees else "DISAGREES: claimed")


def test_an_entry_that_is_less_than_the_noise_is_told_so():
    """The rate's derivative is nearly 0 where the rate is best: no claim of that size can be judged."""

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ((batch[0] @ theta["w"]).float() - batch[1]).square().mean()

    torch.manual_seed(0)
    x = torch.randn(32, 3).float() * torch.tensor([1.0, 2.0, 3.0]).float()
    batch = x, x @ torch.ones(3, 1).float() + torch.randn(32, 1).float()
    problem = gimli.Problem(loss, lambda *arguments: loss(*arguments) + 30, SGD())
    call: Call = {"theta_0": {"w": torch.zeros(3, 1).float()}, "train_batches": [batch], "val_batch": batch}

    def slope(lr: float) -> float:
        return gimli.meta_gradient(problem, **call, phi_opt={"lr": torch.tensor(lr)}).A_opt["lr"].item()

    first, second = slope(0.0), slope(0.1)  # a parabola
    call["phi_opt"] = {"lr": torch.tensor(0.1 * first / (first - second))}
    right = gimli.meta_gradient(problem, **call).A_opt["lr"]
    report = gimli.verify(problem, **call, oracles=["autograd"], claimed={"lr": 1.5 * right})
    assert report.ok, str(report)
    assert 'less than it: A_opt["lr"]' in report.headline
    assert all(c.verdict is Verdict.BELOW for c in report.checks if c.name == 'A_opt["lr"]')
    Console(file=io.StringIO(), width=160).print(report)
