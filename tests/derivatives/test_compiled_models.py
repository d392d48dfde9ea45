"""Losses that call what a user has compiled by torch.compile: the backward of that has no derivative."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": gimli.memory.StoreStates()},
        {"second_order": "reverse_over_forward"},
        {"check": False},
        {"tasks": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("what", ["model", "function"])
def test_a_compiled_model_has_the_numbers_of_the_model(what: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    called = torch.compile(net, backend="aot_eager") if what == "model" else net
    square = torch.compile(torch.square, backend="aot_eager") if what == "function" else torch.square
    data = torch.randn(2, 4, 2) if "tasks" in options else torch.randn(4, 2)
    prefix = "_orig_mod." if what == "model" else ""

    def plain(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        return functional_call(net, {k.removeprefix(prefix): v for k, v in theta.items()}, batch).square().mean()

    def loss(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        value: Tensor = square(functional_call(called, theta, batch)).mean()
        return value

    theta_0 = dict(called.named_parameters())
    results = [
        gimli.meta_gradient(gimli.Problem(of, of, SGD(lr=0.1)), theta_0, [data] * 3, data, **options)
        for of in (loss, plain)
    ]
    torch.testing.assert_close(results[0].B_0, results[1].B_0, rtol=1e-13, atol=0)
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_other_threads_run_compiled_meanwhile() -> None:
    """torch's stance is one for the process: whole functions that another thread had compiled raised an error."""
    within, over, calls = threading.Event(), threading.Event(), list[str]()

    def loss(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        within.set()
        assert over.wait(60)
        value: Tensor = compiled(theta["w"] - batch).sum()
        return value

    def noting(graph: Any, inputs: Any) -> Any:
        def called(*arguments: Tensor) -> Any:
            calls.append(threading.current_thread().name)
            return graph(*arguments)

        return called

    compiled = torch.compile(lambda x: x * x, backend=noting, fullgraph=True)
    theta, batch, results = {"w": torch.arange(3.0)}, torch.ones(3), []
    problem = gimli.Problem(loss, loss, SGD(lr=0.1))
    arguments = (problem, theta, [batch], batch)
    thread = threading.Thread(
        target=lambda: results.append(gimli.meta_gradient(*arguments, check=False, compile=False)), name="eager"
    )
    thread.start()
    try:
        assert within.wait(60)
        assert torch.equal(compiled(theta["w"]), theta["w"] ** 2)
        assert torch.equal(compiled(theta["w"]), theta["w"] ** 2)
        assert calls == ["MainThread"] * 2
        with torch.compiler.set_stance("force_eager"):  # a user's own
            compiled(theta["w"])
        assert calls == ["MainThread"] * 2
    finally:
        over.set()
        thread.join()
    assert calls == ["MainThread"] * 2  # none within the loss
    torch.testing.assert_close(results[0].B_0["w"], 2 * 0.8**2 * (theta["w"] - 1))
    assert torch._dynamo.eval_frame._stance.stance == "default"
