"""What a loss or a function of batches keeps outside of its arguments: trying them before a run leaves no trace there,
and what cannot be put back is noticed."""

from __future__ import annotations

import collections
import functools
import itertools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError, ReplayError
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD

Kept = tuple[Callable[..., Tensor], Callable[[], Any]]  # a loss, and what it has kept so far
COUNT = 0


def of(theta: Tensors, number: Any) -> Tensor:
    return (theta["w"] * float(number) - 1).square().sum()


def in_a_list() -> Kept:
    calls: list[int] = []
    return lambda theta, phi, batch: of(theta, calls.append(1) or len(calls)), lambda: len(calls)


def in_a_dict_by_default() -> Kept:
    counter: Any = collections.Counter()

    def loss(theta: Tensors, phi: Tensors, batch: Any, calls: Any = counter) -> Tensor:
        calls["n"] += 1
        return of(theta, calls["n"])

    return loss, lambda: counter["n"]


def in_a_variable() -> Kept:
    n = 0

    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        nonlocal n
        n += 1
        return of(theta, n)

    return loss, lambda: n


def in_a_global() -> Kept:
    globals()["COUNT"] = 0

    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        global COUNT
        COUNT += 1
        return of(theta, COUNT)

    return loss, lambda: COUNT


def in_the_function() -> Kept:
    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        loss.n += 1  # type: ignore[attr-defined]
        return of(theta, loss.n)  # type: ignore[attr-defined]

    loss.n = 0  # type: ignore[attr-defined]
    return loss, lambda: loss.n  # type: ignore[attr-defined]


class Keeper:
    """Counts in an attribute and in a slot."""

    __slots__ = ("__dict__", "n")

    def __init__(self) -> None:
        self.n, self.seen = 0, [0]

    def __call__(self, theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        self.n += 1
        self.seen.append(self.n)
        return of(theta, sum(self.seen) + self.n)


def in_an_object() -> Kept:
    keeper = Keeper()
    return keeper, lambda: (keeper.n, keeper.seen)


def in_its_method() -> Kept:
    keeper = Keeper()
    return keeper.__call__, lambda: (keeper.n, keeper.seen)


def in_a_partial() -> Kept:
    space = types.SimpleNamespace(n=0)

    def loss(space: Any, theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        space.n += 1
        return of(theta, space.n)

    return functools.partial(loss, space), lambda: space.n


def in_a_queue() -> Kept:
    numbers = collections.deque(range(1, 40))
    return lambda theta, phi, batch: of(theta, numbers.popleft()), lambda: len(numbers)


def in_an_array() -> Kept:
    calls = np.zeros(1)
    return lambda theta, phi, batch: of(theta, np.add(calls, 1, out=calls)[0]), lambda: float(calls[0])


def in_a_tensor() -> Kept:
    calls = torch.zeros(1)
    return lambda theta, phi, batch: of(theta, calls.add_(1).item()), lambda: calls.item()


def drawn_by_torch() -> Kept:
    generator = torch.Generator().manual_seed(0)
    return lambda theta, phi, batch: of(theta, torch.rand(1, generator=generator).item()), lambda: 0


def drawn_by_numpy() -> Kept:
    generator = np.random.default_rng(0)
    return lambda theta, phi, batch: of(theta, generator.random()), lambda: generator.bit_generator.state


def drawn_by_numpy_of_old() -> Kept:
    generator = np.random.RandomState(0)
    return lambda theta, phi, batch: of(theta, generator.rand()), lambda: generator.get_state()[2]


def drawn_by_python() -> Kept:
    generator = random.Random(0)
    return lambda theta, phi, batch: of(theta, generator.random()), generator.getstate


KEPT = [
    *(in_a_list, in_a_dict_by_default, in_a_variable, in_a_global, in_the_function, in_an_object, in_its_method),
    *(in_a_partial, in_a_queue, in_an_array, in_a_tensor),
    *(drawn_by_torch, drawn_by_numpy, drawn_by_numpy_of_old, drawn_by_python),
]


def run(loss: Callable[..., Tensor], batches: Any = (None, None, None), **more: Any) -> gimli.MetaGradient:
    problem = gimli.Problem(loss, lambda theta, phi, batch: theta["w"].square().sum(), SGD(lr=0.01))
    theta_0 = {"w": torch.ones(2, dtype=torch.float64)}
    return gimli.meta_gradient(problem, theta_0, batches, None, steps=3, **more)


@pytest.mark.parametrize("make", KEPT, ids=lambda make: make.__name__)
def test_a_run_starts_as_if_nothing_had_been_tried(make: Callable[[], Kept]) -> None:
    (tested, kept_tested), _ = make(), None
    B_0 = run(tested).B_0["w"]
    after = kept_tested()
    plain, kept = make()
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    theta = w
    for _ in range(3):
        (G,) = torch.autograd.grad(plain({"w": theta}, {}, None), theta, create_graph=True)
        theta = theta - 0.01 * G
    (expected,) = torch.autograd.grad(theta.square().sum(), w)
    torch.testing.assert_close(B_0, expected, rtol=1e-13, atol=0)
    assert after == kept()


@pytest.mark.parametrize("make", [in_a_list, drawn_by_numpy, in_an_object], ids=lambda make: make.__name__)
def test_the_run_that_finds_the_end_leaves_no_trace(make: Callable[[], Kept]) -> None:
    results = []
    for more in ({}, {"until": gimli.Until(loss_change=0.0, strict=False)}):
        loss, kept = make()
        results.append((run(loss, **more).val_loss, kept()))
    assert results[0] == results[1]


@pytest.mark.parametrize("iterator", [itertools.count(1), iter(range(1, 99)), (n for n in range(1, 99))])
def test_what_cannot_be_put_back_is_noticed(iterator: Any) -> None:
    with pytest.raises(ReplayError, match="check=False"):
        run(lambda theta, phi, batch: of(theta, next(iterator)))


@pytest.mark.parametrize(
    "memory", [None, gimli.memory.StoreStates(), gimli.memory.Checkpoint(1), gimli.memory.Budget("64MiB")]
)
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("draw", ["torch", "numpy", "python"])
def test_batches_that_are_drawn_are_those_of_a_plain_loop(memory: Any, check: bool, draw: str) -> None:
    def batch(j: int) -> Tensor:
        drawn = {"torch": lambda: torch.rand(2), "numpy": lambda: np.random.rand(2), "python": random.random}[draw]()  # noqa: NPY002
        return torch.as_tensor(drawn, dtype=torch.float64)

    def seed() -> None:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)

    def loss(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        return (theta["w"] - batch).square().sum() / 2

    theta = torch.ones(2, dtype=torch.float64)
    seed()
    for j in range(3):
        theta = theta - 0.01 * (theta - batch(j))
    after = batch(3)
    for _ in range(2):  # when a problem is first met, and when it is known
        seed()
        result = run(loss, batch, memory=memory, check=check)
        torch.testing.assert_close(result.theta_J["w"], theta, rtol=1e-13, atol=0)
        if memory is None:
            assert torch.equal(batch(3), after)


def test_an_iterator_behind_a_function_of_j_is_refused() -> None:
    batches = iter([torch.full((2,), float(n)) for n in range(99)])
    with pytest.raises(ArgumentError, match="same batch for the same j"):
        run(lambda theta, phi, batch: (theta["w"] - batch).square().sum(), lambda j: next(batches))


@pytest.mark.parametrize("way", ["data", "no_grad"])
@pytest.mark.parametrize("which", ["theta", "phi"])
def test_a_loss_that_changes_its_arguments_is_refused(way: str, which: str) -> None:
    w, c = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        value = (theta["w"] * phi["c"]).square().sum()
        tensor = theta["w"] if which == "theta" else phi["c"]
        tensor.data.mul_(0.5) if way == "data" else tensor.detach().mul_(0.5)
        return value

    problem = gimli.Problem(loss, lambda theta, phi, batch: theta["w"].square().sum(), SGD(lr=0.01))
    with pytest.raises(Exception, match=r"in place|inplace"):
        gimli.meta_gradient(problem, {"w": w}, [None], None, phi_loss={"c": c})
    assert torch.equal(w, torch.ones_like(w))
    assert torch.equal(c, torch.ones_like(c))
