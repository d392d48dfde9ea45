"""What `vectorised` gives is what `torch.func.vmap` gives, of every kind of tree and under every transform."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch.func import grad, vmap

from gimli_core.transforms.vectorised import vectorised
from gimli_core.trees import mapped, tensors

T = 3


class Pair(NamedTuple):
    w: torch.Tensor
    rest: dict


@pytest.fixture
def trees():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    theta = {"w": drawn(T, 4), "deep": {"b": drawn(T), "c": [drawn(T, 2, 2)]}}
    return theta, {"a": drawn(4)}, (drawn(T, 4), drawn(5))


def function(theta, phi, batch):
    x, scale = batch
    loss = ((theta["w"] * phi["a"] - x) ** 2).sum() * theta["deep"]["b"] + scale.sum()
    return Pair(theta["deep"]["c"][0].sum() + loss, {"unused": phi["a"], "x": (x.cos(), loss)})


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "traced"])
def test_it_is_vmap(trees, compiled):
    over = vectorised(function, (True, False, (True, False)), T)
    if compiled:
        over = torch.compile(over, backend="eager", fullgraph=True)
    expected = vmap(function, in_dims=(0, None, (0, None)))(*trees)
    found = over(*trees)
    assert type(found) is Pair
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(expected), strict=True))


def test_with_the_librarys_own_way_through_trees(trees):
    """Which knows dicts, tuples and lists alone."""
    theta, phi, (x, scale) = trees

    def of(theta, phi):
        return function(theta, phi, (x[0], scale))

    found = vectorised(of, (True, False), T, mapped=mapped)(theta, phi)
    expected = vmap(of, in_dims=(0, None))(theta, phi)
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(expected), strict=True))


def test_within_and_around_other_transforms(trees):
    theta, phi, batch = trees

    def total(theta, phi):
        return vectorised(grad(lambda *of: function(*of).w), (True, False, (True, False)), T)(theta, phi, batch)

    def expected(theta, phi):
        return vmap(grad(lambda *of: function(*of).w), in_dims=(0, None, (0, None)))(theta, phi, batch)

    def squares(of):
        return lambda phi: sum((g**2).sum() for g in tensors(of(theta, phi)))

    found, true = grad(squares(total))(phi), grad(squares(expected))(phi)
    assert torch.equal(found["a"], true["a"])


@pytest.mark.parametrize("randomness", ["different", "error"])
def test_random_numbers_are_as_vmap_draws_them(randomness):
    def noisy(x):
        return x + torch.rand_like(x)

    def drawn(over):
        torch.manual_seed(0)
        return over(torch.zeros(T, 2))

    if randomness == "error":
        with pytest.raises(RuntimeError, match="random"):
            drawn(vectorised(noisy, (True,), T))
        return
    found = drawn(vectorised(noisy, (True,), T, randomness=randomness))
    assert torch.equal(found, drawn(vmap(noisy, randomness=randomness)))
    assert len(found.unique()) == found.numel()


def test_after_an_error_nothing_is_vectorised():
    def fails(x):
        raise KeyError("of the function")

    with pytest.raises(KeyError, match="of the function"):
        vectorised(fails, (True,), T)(torch.zeros(T))
    assert torch._C._functorch.peek_interpreter_stack() is None


@pytest.mark.parametrize("where", ["argument", "result"])
def test_what_is_no_tensor(where):
    x = torch.zeros(T)
    argument = {"x": x, "name": "text"} if where == "argument" else {"x": x}
    over = vectorised(lambda tree: tree["x"] if where == "argument" else (tree["x"], 1.0), (True,), T)
    with pytest.raises(ValueError, match=r"not (str|float)"):
        over(argument)
