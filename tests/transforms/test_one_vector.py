"""All small tensors as one vector: the bits of the rule alone, whatever the names and the order of the tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import as_one_vector, prepare
from gimli_core.errors import NotFiniteError
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import SGD, Adam
from gimli_core.transforms.one_vector import OneVector
from tests.compare import flat_results, identical


def by_name(**arguments: Any) -> gimli.MetaGradient:
    """The same run with tensors by name: someone looks at every line."""
    return gimli.meta_gradient(**arguments, watch=lambda event: None)


def joined(**arguments: Any) -> bool:
    """Whether the tensors of a call are one vector."""
    return any(isinstance(t, OneVector) for t in as_one_vector(prepare(Call(**arguments))).form.transforms)


def same(**arguments: Any) -> None:
    assert joined(**arguments)
    for memory in (None, RetainGraphs(), StoreStates(), Checkpoint(1)):
        assert identical(
            flat_results(gimli.meta_gradient(**arguments, memory=memory)), flat_results(by_name(**arguments))
        )


@pytest.mark.parametrize("names", [("all tensors", "step"), ("a.b", "all tensors'"), ("ü", "")])
def test_any_name_is_a_name(names: tuple[str, str]) -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        assert tuple(theta) == names
        return ((theta[names[0]] @ theta[names[1]] - batch).square()).sum() * phi["scale"]

    same(
        problem=gimli.Problem(loss, loss, Adam(lr=0.1)),
        theta_0={names[0]: torch.rand(2, 3), names[1]: torch.rand(3)},
        train_batches=torch.rand(4, 2),
        val_batch=torch.rand(2),
        phi_opt={"lr": 0.1},
        phi_loss={"scale": 0.5},
    )


def test_frozen_entries_keep_their_place_in_the_order() -> None:
    frozen = nn.Parameter(torch.rand(2), requires_grad=False)

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: None) -> Tensor:
        first, held, last = theta.values()  # some losses take theta apart by its order
        assert held.shape == frozen.shape
        return (first * held).sum() ** 2 + (last - held).square().sum()

    theta_0 = {"a": torch.rand(2), "held": frozen, "z": torch.rand(2)}
    same(problem=gimli.Problem(loss, loss, Adam()), theta_0=theta_0, train_batches=[None] * 3, val_batch=None)


def test_tied_weights_of_a_module() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net[2].weight = net[0].weight

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(net, theta, batch).square().mean()

    theta_0 = dict(net.named_parameters())
    same(
        problem=gimli.Problem(loss, loss, SGD(lr=0.1)),
        theta_0=theta_0,
        train_batches=torch.rand(3, 4, 3),
        val_batch=torch.rand(4, 3),
    )


class Halved(Adam):
    """Adam on half of the gradient: a rule with a step and a pullback of its own."""

    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        assert set(theta) == {"a", "b"}  # by the names that a user knows
        return super().step(theta, state, {k: g / 2 for k, g in G.items()}, hyper)

    def pullback(self, theta: Any, state: Any, G: Any, hyper: Any, B: Any, S: Any, wanted: Any) -> Any:
        pulled = super().pullback(theta, state, {k: g / 2 for k, g in G.items()}, hyper, B, S, wanted)
        return pulled._replace(V={k: v / 2 for k, v in pulled.V.items()})


class Started(Adam):
    """Adam that starts by name."""

    def initial_state(self, theta: Any, hyper: Any) -> Any:
        state = super().initial_state(theta, hyper)
        state["exp_avg"]["a"] = torch.ones_like(theta["a"])
        return state


@pytest.mark.parametrize("rule", [Halved, Started])
def test_a_rule_with_methods_of_its_own_keeps_its_tensors(rule: type[Adam]) -> None:
    """Its `_step` and `_pullback` are not all that there is to it: it is called with the tensors by name."""

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: None) -> Tensor:
        return (theta["a"] ** 4).sum() * phi["scale"] + theta["b"].square().sum()

    arguments: dict[str, Any] = {
        "problem": gimli.Problem(loss, loss, rule(eps=0.1)),
        "theta_0": {"a": torch.rand(3), "b": torch.rand(4)},
        "train_batches": [None] * 3,
        "val_batch": None,
        "phi_opt": {"lr": 0.1},
        "phi_loss": {"scale": 0.5},
    }
    assert not joined(**arguments)
    gimli.verify(**arguments).assert_ok()


def test_an_error_names_the_tensor() -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: None) -> Tensor:
        return theta["sound"].sum() ** 2 + theta["broken"].sqrt().sum()

    theta_0 = {"sound": torch.ones(2), "broken": torch.zeros(2)}
    problem = gimli.Problem(loss, loss, SGD(lr=0.1))
    assert joined(problem=problem, theta_0=theta_0, train_batches=[None] * 2, val_batch=None)
    with pytest.raises(NotFiniteError, match="G_0 of 'broken' is not finite"):
        gimli.meta_gradient(problem, theta_0, [None] * 2, None)


def test_a_tensor_that_a_later_step_leaves_alone() -> None:
    """The run on one vector makes way for one with tensors by name, and random numbers are as if it had not been."""

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], which: str) -> Tensor:
        used = theta.values() if which == "both" else [theta[which]]
        return sum(((v - torch.rand(2)) ** 2).sum() for v in used)  # type: ignore[return-value]

    made: dict[str, Any] = {
        "theta_0": {"a": torch.rand(2), "b": torch.rand(2)},
        "train_batches": ["both", "a", "both"],
        "val_batch": "both",
    }
    torch.manual_seed(3)
    found = gimli.meta_gradient(gimli.Problem(loss, loss, SGD(lr=0.1, momentum=0.9)), **made)
    torch.manual_seed(3)
    expected = by_name(problem=gimli.Problem(loss, loss, SGD(lr=0.1, momentum=0.9)), **made)
    assert identical(flat_results(found), flat_results(expected))
    assert found.state_J["skipped"]["b"] == 1
