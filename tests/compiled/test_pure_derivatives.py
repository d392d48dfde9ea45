"""Gradients and pullbacks of dicts of tensors are those of `torch.func`, to the bit, one in another too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vjp, vmap
from torch.utils._pytree import tree_leaves

from gimli_core.compiled.pure_derivatives import gradients, pulled_back

Tree = dict[str, Tensor]


def curved(x: Tree, y: Tree) -> tuple[Tensor, Tensor]:
    """(a scalar that does not depend on all that it is given, something beside it)."""
    product = x["w"] @ y["v"]
    return product.tanh().sum() + (x["b"] ** 3).sum(), product


def linear(x: Tree, y: Tree) -> tuple[Tensor, Tensor]:
    return (2 * x["w"]).sum() + y["v"].sum(), x["b"]


def constant(x: Tree, y: Tree) -> tuple[Tensor, Tensor]:
    return torch.ones(()), x["b"]


FUNCTIONS = {f.__name__: f for f in (curved, linear, constant)}


def trees() -> tuple[Tree, Tree]:
    return {"w": torch.rand(2, 3), "b": torch.rand(2)}, {"v": torch.rand(3), "of no use": torch.rand(2)}


def same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) and x.requires_grad == y.requires_grad for x, y in pairs)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_gradients_are_those_of_torch_func(function: Any) -> None:
    x, y = trees()
    both, beside = gradients(function, x, y)
    expected, (_, same_beside) = grad_and_value(function, argnums=(0, 1), has_aux=True)(x, y)
    assert [list(tree) for tree in both] == [list(x), list(y)]
    assert same((both, beside), (list(expected), same_beside))
    (first,), _ = gradients(lambda x: function(x, y), x)
    assert same(first, both[0])


def second(x: Tree, y: Tree) -> list[Tensor]:
    """The gradient by x, and what is beside it."""
    (G,), beside = gradients(lambda x: curved(x, y), x)
    return [*G.values(), beside]


def second_by_torch(x: Tree, y: Tree) -> list[Tensor]:
    G, (_, beside) = grad_and_value(lambda x: curved(x, y), has_aux=True)(x)
    return [*G.values(), beside]


def test_a_gradient_is_pulled_back_as_by_torch_func() -> None:
    x, y = trees()
    outputs, pull = pulled_back(second, x, y)
    expected, torch_pull = vjp(second_by_torch, x, y)
    assert same(outputs, expected)
    V = [torch.rand_like(output) for output in outputs]
    assert same(pull(V), list(torch_pull(V)))
    assert same(pull(V[:2]), list(torch_pull([*V[:2], torch.zeros_like(V[2])])))
    assert any(v.any() for tree in pull(V) for v in tree.values())


def test_they_are_vectorised_and_compiled_as_they_are() -> None:
    def pulled(x: Tree, y: Tree, V: list[Tensor]) -> list[Tree]:
        return pulled_back(second, x, y)[1](V)

    several = [torch.utils._pytree.tree_map(lambda v: torch.rand(4, *v.shape), tree) for tree in trees()]
    V = [torch.rand(4, 2, 3), torch.rand(4, 2)]
    over = vmap(pulled)(*several, V)
    for i in range(4):
        x, y, of_one = torch.utils._pytree.tree_map(lambda v, i=i: v[i], (*several, V))
        torch.testing.assert_close(torch.utils._pytree.tree_map(lambda v, i=i: v[i], over), pulled(x, y, of_one))
    compiled = torch.compile(pulled, backend="aot_eager", fullgraph=True)(x, y, of_one)
    torch.testing.assert_close(compiled, pulled(x, y, of_one))


def test_what_is_put_off_until_backward_is_refused() -> None:
    """As torch.func refuses it: of a checkpoint there is no derivative of second order in here."""
    from torch.utils.checkpoint import checkpoint

    def put_off(x: Tree) -> tuple[Tensor, Tensor]:
        return checkpoint(lambda w: w.sin().sum(), x["w"], use_reentrant=False), x["w"]

    with pytest.raises(RuntimeError, match="saved tensor hooks"):
        gradients(put_off, {"w": torch.rand(2)})
