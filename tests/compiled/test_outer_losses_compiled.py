"""Several outer losses, compiled: the late half of a step for each; what is not compiled says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.compiled.compiler.split_function import Joined
from gimli_core.memory import Checkpoint
from gimli_core.optimizers import Adam
from tests import problems
from tests.compare import agree, distance, said
from tests.problems import tanh_loss, tanh_network

pytestmark = problems.needs_compiler


def three(theta: Any, phi: Any, batch: Any) -> Tensor:
    return torch.stack([tanh_loss({n: (1 + 0.2 * i) * v for n, v in theta.items()}, phi, batch) for i in range(3)])


def call_of(**more: Any) -> dict[str, Any]:
    made = tanh_network(Adam(), phi_opt={"lr": torch.tensor(0.1)}, **more)
    return {**made, "problem": gimli.Problem(tanh_loss, three, Adam())}


def test_a_whole_run_is_not_compiled_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    call = call_of()
    with caplog.at_level("INFO", "gimli_core"):
        found = gimli.meta_gradient(**call, compile="whole")
    assert "the whole run not compiled: val_loss returns a vector" in said(caplog)
    agree(found, gimli.meta_gradient(**call, compile=False), rtol=0, atol=0)


@pytest.mark.long
@pytest.mark.parametrize("weights", [None, [0.2, 0.0, 0.1, 1.0]])
def test_compiled_rows_agree_with_eager_ones(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(val_weights=weights)
    eager = gimli.meta_gradient(**call, compile=False)
    calls = {"first": 0, "second": 0}

    def counted(name: str) -> Any:
        function = getattr(Joined, name)

        def count(self: Joined, *arguments: Any) -> Any:
            calls[name] += 1
            return function(self, *arguments)

        return count

    found = gimli.meta_gradient(**call, compile=True)
    agree(found, eager)
    for memory in (None, Checkpoint(2)):
        agree(gimli.meta_gradient(**call, compile=True, memory=memory), eager)
        with monkeypatch.context() as patch:
            for name in calls:
                calls[name] = 0
                patch.setattr(Joined, name, counted(name))
            gimli.meta_gradient(**call, compile=True, memory=memory)
        assert calls == {"first": 4, "second": 12}  # each step's graph once, for all three
    theta = {n: v.clone().requires_grad_() for n, v in call["theta_0"].items()}
    along = torch.tensor([1.0, -2.0, 0.5])
    gimli.unroll(**{**call, "theta_0": theta}, compile=True).backward(along)
    for n, v in theta.items():
        assert distance(v.grad, torch.tensordot(along, eager.B_0[n], 1)) < 1e-10


@pytest.mark.long
def test_random_masks_are_the_same_for_every_row() -> None:
    """What draws is not cut in two: each row then has a sweep from the point, in the environment of that point."""

    def train_loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        mask = (torch.rand(3) < 0.6).to(batch[0])
        return tanh_loss(theta, phi, (batch[0] * mask, batch[1]))

    call = call_of()
    call["problem"] = gimli.Problem(train_loss, three, Adam())

    def run(compile: bool | str) -> gimli.MetaGradient:
        torch.manual_seed(4)
        return gimli.meta_gradient(**call, compile=compile, memory=Checkpoint(2))

    agree(run(True), run(False))
