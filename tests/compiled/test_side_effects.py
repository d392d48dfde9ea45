"""What changes in a run, by the losses or by what gives batches, is not compiled: a step would go on without it."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import gimli_core as gimli
from gimli_core.arguments.batches import code_of, code_of_val
from gimli_core.memory import StoreStates
from gimli_core.optimizers import SGD
from tests.compare import agree, said
from tests.problems import tanh_loss, tanh_network

J = 4
Loss = Callable[[dict[str, Tensor], dict[str, Tensor], Any], Tensor]
GLOBAL = 0


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count, self.on = 0, False
        self.register_buffer("level", torch.zeros(()))


def counters() -> dict[str, Callable[[], Any]]:
    """What counts in each way that Python has, as a fresh function."""
    module, seen, counts, last, names = Counting(), list[int](), {"n": 0}, deque([0]), set[int]()
    number = 0

    def globally() -> int:
        global GLOBAL
        GLOBAL += 1
        return GLOBAL

    def nonlocally() -> int:
        nonlocal number
        number += 1
        return number

    def on_a_module() -> int:
        module.count += 1
        return module.count

    def and_back() -> int:
        module.on = not module.on
        return 1 + module.on

    def in_a_list() -> int:
        seen.append(1)
        return len(seen)

    def in_a_dict() -> int:
        counts["n"] += 1
        return counts["n"]

    def in_a_deque() -> int:
        last.append(last[-1] + 1)
        return last[-1]

    def in_a_set() -> int:
        names.add(len(names))
        return len(names)

    def in_a_default(counted: list[int] = [0]) -> int:  # noqa: B006 - it is what is to be seen
        counted[0] += 1
        return counted[0]

    def in_a_buffer() -> Tensor:
        module.level += 1
        return module.level.clone()

    def in_a_new_buffer() -> Tensor:
        module.level = module.level + 1
        return module.level

    def without_being_read() -> int:
        counts["last"] = 1
        return 1

    every = (globally, nonlocally, on_a_module, and_back, in_a_list, in_a_dict, in_a_deque, in_a_set)
    return {f.__name__: f for f in (*every, in_a_default, in_a_buffer, in_a_new_buffer, without_being_read)}


def counted(count: Callable[[], Any]) -> Loss:
    return lambda theta, phi, batch: tanh_loss(theta, phi, batch) * (1 + 0.1 * count())


@pytest.mark.parametrize("compile", ["steps", "whole"])
@pytest.mark.parametrize("which", ["train_loss", "val_loss"])
@pytest.mark.parametrize("name", counters())
def test_losses_that_change_something(
    name: str, which: str, compile: str, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    """Eager, with the eager numbers; before, steps took the first count for all."""
    call = tanh_network(SGD(lr=0.1), phi_opt={"lr": torch.tensor(0.1)})

    def found(compile: str | bool) -> Any:
        global GLOBAL
        GLOBAL = 0
        losses: dict[str, Any] = {"train_loss": tanh_loss, "val_loss": tanh_loss} | {which: counted(counters()[name])}
        return gimli.meta_gradient(**call | {"problem": gimli.Problem(**losses, optimizer=SGD())}, compile=compile)

    agree(found(compile), found(False), rtol=0, atol=0)
    assert "not compiled: " in said(caplog)


def test_it_is_said_what(graphs: list[GraphModule], caplog: pytest.LogCaptureFixture) -> None:
    call = tanh_network(SGD(lr=0.1))
    seen: list[int] = []
    call["problem"] = gimli.Problem(counted(lambda: seen.append(1) or 0), tanh_loss, SGD(lr=0.1))
    gimli.meta_gradient(**call, compile="steps")
    assert "each evaluation changes a list that outlives it, and a compiled one would not" in said(caplog)
    assert len(seen) == J  # of the run; what was tried before is put back


def test_weights_put_into_modules_are_no_change(graphs: list[GraphModule]) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Dropout(0.1), nn.TransformerEncoderLayer(4, 2, 8))

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return torch.func.functional_call(net, theta, (batch,)).square().mean()

    batches = torch.randn(J + 1, 5, 3)
    call = (gimli.Problem(loss, loss, SGD(lr=0.1)), dict(net.named_parameters()), list(batches[:-1]), batches[-1])
    gimli.meta_gradient(*call, compile="whole")
    assert len(graphs) == 1


class Temperature:
    """What losses read, and batches set."""

    def __init__(self) -> None:
        self.number, self.tensor, self.net = 1.0, torch.tensor(1.0), Counting()

    def loss(self, theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        level = self.number * self.tensor * self.net.level.exp() * (2 if self.net.training else 1)
        return tanh_loss(theta, phi, batch) * level


def set_number(to: Temperature, j: int) -> None:
    to.number = 1.0 + j


def set_tensor(to: Temperature, j: int) -> None:
    to.tensor = torch.tensor(1.0 + j)


def write_tensor(to: Temperature, j: int) -> None:
    to.tensor.fill_(1.0 + j)


def write_buffer(to: Temperature, j: int) -> None:
    to.net.level.fill_(0.1 * j)


def set_mode(to: Temperature, j: int) -> None:
    to.net.train(j % 2 == 0)


def nothing(to: Temperature, j: int) -> None:
    """Of what the losses read."""


def for_one_step(to: Temperature, j: int) -> None:
    to.number = 2.0 if j == 1 else 1.0


def every_second_one(to: Temperature, j: int) -> None:
    to.number = 1.0 + j % 2


SETTING = [set_number, set_tensor, write_tensor, write_buffer, set_mode, for_one_step, every_second_one]


class Calls:
    """Calls of one problem, whose batches are given by functions that set something."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.call, self.to = tanh_network(SGD(lr=0.1), phi_opt={"lr": torch.tensor(0.1)}), Temperature()
        self.call["problem"] = gimli.Problem(self.to.loss, self.to.loss, SGD(), modules=[self.to.net])

    def __call__(self, setting: Callable[[Temperature, int], None], **options: Any) -> gimli.MetaGradient:
        batches = self.call["train_batches"]
        given = {"train_batches": lambda j: (setting(self.to, j), batches[j])[1], "steps": J}
        return gimli.meta_gradient(**self.call | given | options)


KINDS: dict[str, dict[str, Any]] = {
    "whole": {"compile": "whole"},
    "steps": {"compile": "steps", "memory": StoreStates()},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTING)
def test_batches_that_set_what_losses_read(
    setting: Any, kind: str, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    found = Calls()(setting, **KINDS[kind])
    agree(found, Calls()(setting, **KINDS[kind] | {"compile": False}), rtol=0, atol=0)
    assert "not compiled: to ask for a batch changes" in said(caplog)


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTING)
def test_the_same_of_a_step_and_its_sweep(setting: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = Calls()(setting, compile="steps")
    agree(found, Calls()(setting, compile=False), rtol=0, atol=0)
    assert "not compiled: to ask for a batch changes" in said(caplog)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_set_nothing_are_compiled(
    kind: str, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    found = Calls()(nothing, **KINDS[kind])
    agree(found, Calls()(nothing, **KINDS[kind] | {"compile": False}))
    assert "not compiled" not in said(caplog)
    assert graphs


@pytest.mark.parametrize("kind", KINDS)
def test_another_function_that_gives_batches_is_looked_after_anew(
    kind: str, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    """What was compiled stays, for batches that leave it alone; it is said once which do not."""
    calls, others = Calls(), Calls()
    for setting in (nothing, for_one_step, nothing, for_one_step):
        calls.to.number = others.to.number = 1.0
        agree(calls(setting, **KINDS[kind]), others(setting, **KINDS[kind] | {"compile": False}))
    assert said(caplog).count("not compiled: to ask for a batch changes") == 1
    assert said(caplog).count("compiling") == 1
    assert len(graphs) == (1 if kind == "whole" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_set_what_was_met_before(
    kind: str, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    """There is a graph for each of the values that they set, and a run would take one of them."""
    calls, others = Calls(), Calls()
    for number, setting in ((1.0, nothing), (2.0, nothing), (1.0, every_second_one), (2.0, nothing)):
        calls.to.number = others.to.number = number
        agree(calls(setting, **KINDS[kind]), others(setting, **KINDS[kind] | {"compile": False}))
    assert said(caplog).count("not compiled: to ask for a batch changes") == 1
    assert len(graphs) == 2 * (1 if kind == "whole" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_user_changes_between_calls_is_not_laid_to_the_batches(
    kind: str, graphs: list[GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    calls, others = Calls(), Calls()
    batches = calls.call["train_batches"]
    for number, options in ((1.0, {"train_batches": batches}), (2.0, {})):
        calls.to.number = others.to.number = number
        agree(calls(nothing, **KINDS[kind] | options), others(nothing, **KINDS[kind] | {"compile": False}))
    assert "not compiled" not in said(caplog)
    assert len(graphs) == 2 * (1 if kind == "whole" else 3)


def test_every_way_to_give_batches_is_told_from_another() -> None:
    class Loader:
        def batch(self, j: int) -> int:
            return j

        def __getitem__(self, j: int) -> int:
            return j

    class Listed(list[int]):
        def __getitem__(self, j: Any) -> Any:
            return 2 * super().__getitem__(j)

    def one(j: int) -> int:
        return j

    def other(j: int) -> int:
        return j + 1

    loaders = Loader(), Loader()
    assert len({code_of(f) for f in (one, other, loaders[0].batch, loaders[0])}) == 4
    assert [code_of(x.batch) for x in loaders] == 2 * [code_of(functools.partial(loaders[0].batch))]
    assert {code_of(x) for x in ([], (), range(3), torch.ones(3))} == {None}
    assert code_of(Listed()) is Listed
    assert code_of_val({"x": torch.ones(3)}) is None
    assert code_of_val(one) == code_of(one)

    def through(f: Callable[[int], int]) -> Callable[[int], int]:
        return lambda j: f(j)

    assert code_of(through(one)) == code_of(through(one)) != code_of(through(other))

    def endless(j: int) -> int:
        return endless(j)

    assert code_of(endless) == code_of(endless)


def test_batches_that_look_alike_are_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    """What some step would leave alone is found out before anything is compiled, one evaluation for each look."""
    evaluated = itertools.count()

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        next(evaluated)
        used = theta["w"] + theta["v"] if len(batch) == 3 else theta["w"]
        return (used * batch.mean()).square().sum()

    theta = {"w": torch.ones(2), "v": torch.ones(2)}
    batches = [torch.ones(3)] * 20 + [torch.ones(4)] + [torch.ones(3)] * 20
    problem = gimli.Problem(loss, lambda theta, phi, batch: theta["v"].sum(), SGD(lr=0.1))
    gimli.meta_gradient(problem, theta, batches, None, compile="steps")
    assert "train_loss does not use 'v' in some step, and it is then left alone" in said(caplog)
    assert next(evaluated) < 2 * len(batches)
