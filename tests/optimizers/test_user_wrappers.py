"""A wrapper that a user writes: a tensor that the loss does not use is left alone, or the wrapper is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import SGD, Adam
from gimli_core.optimizers.wrappers.interface import Wrapper, only

BATCHES = ["a", "b", "a"]


@dataclass(frozen=True, eq=False)
class Doubled(Wrapper):
    """Twice the gradient. `used` says whether it goes through `step_used` and `pullback_used`."""

    used: bool = True

    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        inner = self.inner.step_used if self.used else self.inner.step
        return inner(theta, state, {k: 2 * v for k, v in G.items()}, hyper)

    def pullback(self, theta: Any, state: Any, G: Any, hyper: Any, B: Any, S: Any, wanted: Any) -> Any:
        inner = self.inner.pullback_used if self.used else self.inner.pullback
        pulled = inner(theta, state, {k: 2 * v for k, v in G.items()}, hyper, B, S, only(wanted, self.inner))
        return pulled._replace(V={k: 2 * v for k, v in pulled.V.items()})


def run(rule: Any, scale: float = 1.0, **more: Any) -> gimli.MetaGradient:
    def loss(theta: dict[str, Tensor], phi: Any, which: str | None) -> Tensor:
        parts = theta.values() if which is None else [theta[which]]
        return torch.stack([scale * v.square().sum() for v in parts]).sum()

    problem = gimli.Problem(loss, lambda t, p, b: loss(t, p, b) / scale, rule)
    theta_0 = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    return gimli.meta_gradient(problem, theta_0, BATCHES, None, **more)


@pytest.mark.parametrize("inner", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("memory", [None, gimli.memory.Checkpoint(1)], ids=["kept", "replayed"])
def test_one_that_goes_through_step_used(inner: Any, memory: Any) -> None:
    found, expected = run(Doubled(inner), memory=memory), run(inner, scale=2.0)
    for k, v in expected.B_0.items():
        torch.testing.assert_close(found.B_0[k], v, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("check", [True, False])
def test_one_that_forgets_is_refused(inner: Any, check: bool) -> None:
    with pytest.raises(ArgumentError, match=r"Doubled.step: expected to leave alone .*\('?b'?\).*step_used"):
        run(Doubled(inner, used=False), check=check)


def test_a_pullback_that_forgets_is_refused() -> None:
    class Half(Doubled):
        def pullback(self, theta: Any, state: Any, G: Any, *rest: Any) -> Any:
            pulled = super().pullback(theta, state, G, *rest)
            return pulled._replace(B={k: v for k, v in pulled.B.items() if k in G})

    with pytest.raises(ArgumentError, match=r"Half.pullback: expected to leave alone .*pullback_used"):
        run(Half(SGD(lr=0.1)))
