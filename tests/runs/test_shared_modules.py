"""Runs in several threads that share a module: `functional_call` swaps the weights of the one that all see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli


class Slow(nn.Module):
    """Between the swap of its weights and their use there is time for every other thread."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(1e-3)
        return torch.tanh(self.w * x).sum()


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give that begin at once, each in a thread of its own."""
    results: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def one(i: int) -> None:
        start.wait()
        results[i] = calls[i]()

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates()], ids=str)
@pytest.mark.parametrize("nested", [False, True])
def test_threads_that_share_a_module_get_the_numbers_of_one(memory: Any, nested: bool) -> None:
    shared, other = Slow(), Slow()

    def run(i: int) -> Tensor:
        def loss(theta: dict[str, Tensor], phi: object, batch: Tensor) -> Tensor:
            far = functional_call(other, {"w": theta["w"] * 2}, (batch,)) if nested else 0.0
            return functional_call(shared, theta, (batch,)).square() + far

        problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
        x = torch.arange(1.0, 4.0, dtype=torch.float64) / (i + 1)
        theta_0 = {"w": torch.full((3,), 0.1 * (i + 1), dtype=torch.float64)}
        return gimli.meta_gradient(problem, theta_0, [x] * 3, x, memory=memory).B_0["w"]

    expected = [run(i) for i in range(3)]
    results = together(*(lambda i=i: run(i) for i in range(3)))
    assert all(torch.equal(result, one) for result, one in zip(results, expected, strict=True))
