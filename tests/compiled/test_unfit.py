"""What looks like any loss and cannot be compiled to the eager numbers is found out before, and runs eager."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import gimli_core as gimli
from gimli_core.memory import StoreStates
from gimli_core.optimizers import SGD, DerivedOptimizer, hyperparameter
from tests.compare import agree, said
from tests.problems import tanh_loss, tanh_network

J = 4
SCHEDULE = [1.0, 2.0, 3.0, 4.0, 5.0]
Theta = dict[str, Tensor]
Marked, Unmarked = namedtuple("Marked", "batch"), namedtuple("Unmarked", "batch")


class Kept(dict[str, Any]):
    """A dict of a user's own."""


def scaled(by: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda theta, phi, batch, j: tanh_loss(theta, phi, batch) * by(j)


def straight_through(theta: Theta, phi: Theta, batch: Any) -> Tensor:
    return tanh_loss({k: v + (v.round() - v).data for k, v in theta.items()}, phi, batch)


def clamped_below(theta: Theta, phi: Theta, batch: Any) -> Tensor:
    w = theta["w"] * 1.0
    w.data.clamp_(min=0)
    return tanh_loss({**theta, "w": w}, phi, batch)


def curved_otherwise(theta: Theta, phi: Theta, batch: Any) -> Tensor:
    """Of which the gradient is right, and its derivative not."""
    value = (theta["w"] * 1.0).square()
    return tanh_loss(theta, phi, batch) + (value - 2 * theta["w"].data * theta["w"]).sum()


def step_by_gradient(theta: Theta, phi: Theta, batch: Any) -> Tensor:
    (g,) = torch.autograd.grad(tanh_loss(theta, phi, batch), [theta["w"]], create_graph=True)
    return tanh_loss({**theta, "w": theta["w"] - 0.1 * g}, phi, batch)


def hooked(theta: Theta, phi: Theta, batch: Any) -> Tensor:
    w = theta["w"] * 1.0
    w.register_hook(lambda g: 2 * g)
    return tanh_loss({**theta, "w": w}, phi, batch)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "an index": scaled(lambda j: SCHEDULE[j]),
    "a branch": scaled(lambda j: 2.0 if j.item() % 2 else 1.0),
    "a size": scaled(lambda j: sum(SCHEDULE[: int(j) + 1])),
    "a range": scaled(lambda j: sum(range(int(j) + 2))),
    "a key": scaled(lambda j: {0: 1.0, 1: 2.0}.get(j.item(), 3.0)),
    "straight through": straight_through,
    "through .data": clamped_below,
    "curved otherwise": curved_otherwise,
    "a gradient within": step_by_gradient,
    "a hook within": hooked,
}


def eager_and(compile: str, problem: Callable[[], gimli.Problem], **call: Any) -> None:
    found = gimli.meta_gradient(problem(), **call, compile=compile)
    call.pop("memory", None)
    agree(found, gimli.meta_gradient(problem(), **call, compile=False))


WAYS = [("whole", {}), ("steps", {}), ("steps", {"memory": StoreStates()})]


@pytest.mark.parametrize(("compile", "more"), WAYS)
@pytest.mark.parametrize("which", ["train_loss", "val_loss"])
@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_that_is_not_compiled(
    case: str, which: str, compile: str, more: Any, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    call = tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}, **more)
    losses: dict[str, Any] = {"train_loss": tanh_loss, "val_loss": tanh_loss} | {which: LOSSES[case]}
    del call["problem"]
    eager_and(compile, lambda: gimli.Problem(**losses, optimizer=SGD()), **call)
    if which == "train_loss":  # some are as they should be to first order
        assert "not compiled: " in said(caplog)


@pytest.mark.parametrize(("compile", "more"), [WAYS[0], WAYS[2]])
def test_a_number_that_is_only_computed_with_is_compiled(
    compile: str, more: Any, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    call = tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}, **more)
    del call["problem"]
    loss = scaled(lambda j: 1 + 0.1 * j)
    eager_and(compile, lambda: gimli.Problem(loss, tanh_loss, SGD()), **call)
    assert "not compiled" not in said(caplog)


@dataclass(frozen=True, eq=False)
class Warming(DerivedOptimizer):
    """A rule that goes by the number of its step."""

    lr: Any = hyperparameter(0.1)

    def initial_state(self, theta: Theta, hyper: Any) -> Any:
        return {"step": torch.zeros((), dtype=torch.float64)}

    def step(self, theta: Theta, state: Any, G: Theta, hyper: Any) -> Any:
        rate = 3.0 if state["step"].item() > 2 else 1.0
        return {k: v - rate * hyper[k]["lr"] * G[k] for k, v in theta.items()}, {"step": state["step"] + 1}


@pytest.mark.parametrize(("compile", "more"), WAYS)
def test_a_rule_that_is_not_compiled(
    compile: str, more: Any, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    call = tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}, **more)
    del call["problem"]
    eager_and(compile, lambda: gimli.Problem(tanh_loss, tanh_loss, Warming()), **call)
    assert "not compiled: " in said(caplog)


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "UserDict": lambda b: UserDict(b=b),
    "a dict's subclass": lambda b: Kept(b=b),
}


@pytest.mark.parametrize(("compile", "more"), WAYS)
@pytest.mark.parametrize("kind", CONTAINERS)
def test_batches_that_are_not_taken_apart(
    kind: str, compile: str, more: Any, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    call = tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}, **more)
    del call["problem"]
    call["train_batches"] = [CONTAINERS[kind](b) for b in call["train_batches"]]
    eager_and(
        compile,
        lambda: gimli.Problem(lambda theta, phi, batch: tanh_loss(theta, phi, batch["b"]), tanh_loss, SGD()),
        **call,
    )
    assert f"train_batches has a {type(call['train_batches'][0]).__name__}, which" in said(caplog)


@pytest.mark.parametrize(("compile", "more"), [WAYS[0], WAYS[2]])
def test_kinds_of_containers_are_told_apart(compile: str, more: Any, graphs: list[GraphModule]) -> None:
    """In one run, and from one call to the next."""
    call = tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)}, **more)
    batches = call["train_batches"]

    def loss(theta: Theta, phi: Theta, batch: Any) -> Tensor:
        return tanh_loss(theta, phi, next(iter(batch.values())) if isinstance(batch, dict) else batch[0]) * (
            2 if isinstance(batch, Marked) else 3 if isinstance(batch, OrderedDict) else 1
        )

    call["problem"] = gimli.Problem(loss, tanh_loss, SGD())
    other = gimli.Problem(loss, tanh_loss, SGD())
    kinds: list[Callable[[Any], Any]] = [Marked, Unmarked, lambda b: (b,), lambda b: [b]]
    kinds += [lambda b: {"b": b}, lambda b: OrderedDict(b=b)]
    every = [[kind(b) for b in batches] for kind in kinds]
    every.append([kind(b) for kind, b in zip(kinds, batches, strict=False)])
    for given in every:
        found = gimli.meta_gradient(**call | {"train_batches": given}, compile=compile)
        expected = call | {"train_batches": given, "problem": other}
        expected.pop("memory", None)
        agree(found, gimli.meta_gradient(**expected, compile=False))


@pytest.mark.parametrize(("compile", "more"), WAYS)
def test_a_buffer_that_is_filled_anew(
    compile: str, more: Any, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    call = tanh_network(SGD(), phi_opt={"lr": torch.tensor(0.1)})
    del call["problem"]
    targets = torch.randn(J, 3)
    buffer = torch.empty(3)

    def loss(theta: Theta, phi: Theta, batch: Tensor) -> Tensor:
        return (theta["w"].sum() - batch).square().mean() if batch.ndim == 1 else batch.sum()

    call |= {"train_batches": lambda j: buffer.copy_(targets[j]), "steps": J, "phi_loss": None}
    call |= {"theta_0": {"w": torch.randn(3, 4)}, "val_batch": torch.zeros(3)}
    if more and compile == "steps":
        call["memory"] = StoreStates()
    eager_and(compile, lambda: gimli.Problem(loss, loss, SGD()), **call)
    if compile == "whole":
        assert "not compiled: to ask for a batch changes one that was given before" in said(caplog)
