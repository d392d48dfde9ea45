"""`grad_and_value` and `vjp` for functions of `{name: tensor}`, quick to trace; only `pure_steps.py` needs them.

`torch.func`'s own go through every tree four times and more, one traced call a tensor and time. Here they are gone
through once; the differentiating is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.eager_transforms import (
    _autograd_grad,
    _set_tensor_requires_grad,
    enable_inplace_requires_grad,
    grad_increment_nesting,
)
from torch._functorch.vmap import doesnt_support_saved_tensors_hooks

from gimli_core.notation import Tensors

__all__ = ["gradients", "pulled_back"]

_wrapped, _unwrapped = torch._C._functorch._wrap_for_grad, torch._C._functorch._unwrap_for_grad


@doesnt_support_saved_tensors_hooks
def gradients(function: Callable[..., tuple[Tensor, Tensor]], *trees: Tensors) -> tuple[list[Tensors], Tensor]:
    """(the gradient of `function(*trees)[0]`, a scalar, by each tree and in its form, `function(*trees)[1]`).

    >>> import torch
    >>> gradients(lambda x, y: ((x["a"] * y["b"]).sum(), y["b"]), {"a": torch.ones(1)}, {"b": torch.full((1,), 3.0)})
    ([{'a': tensor([3.])}, {'b': tensor([1.])}], tensor([3.]))
    """
    with grad_increment_nesting() as level, torch.enable_grad():
        inputs = _inputs(trees, level)
        value, beside = function(*_as_trees(inputs, trees))
        derivatives = _autograd_grad((value,), inputs, create_graph=True)
        return _as_trees([_unwrapped(x, level) for x in derivatives], trees), _unwrapped(beside, level)


@doesnt_support_saved_tensors_hooks
def pulled_back(
    function: Callable[..., Sequence[Tensor]], *trees: Tensors
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], list[Tensors]]]:
    """(what `function(*trees)` gives, the function that takes as many cotangents to their adjoint by each tree).

    With fewer cotangents the last ones are 0.

    >>> import torch
    >>> of, pull = pulled_back(lambda x: [x["a"] ** 2, 5 * x["a"]], {"a": torch.full((1,), 3.0)})
    >>> of, pull([torch.ones(1)]), pull([torch.ones(1), torch.ones(1)])
    ([tensor([9.]), tensor([15.])], [{'a': tensor([6.])}], [{'a': tensor([11.])}])
    """
    with grad_increment_nesting() as level, torch.enable_grad():
        inputs = _inputs(trees, level)
        outputs = function(*_as_trees(inputs, trees))
        results = [_unwrapped(x, level) for x in outputs]

    def pull(cotangents: Sequence[Tensor]) -> list[Tensors]:
        of = outputs[: len(cotangents)]
        adjoints = _autograd_grad(of, inputs, cotangents, retain_graph=True, create_graph=torch.is_grad_enabled())
        return _as_trees(adjoints, trees)

    return results, pull


def _inputs(trees: Sequence[Tensors], level: int) -> list[Tensor]:
    """All tensors of the trees, as the ones that are differentiated by; of any shapes."""
    inputs = [_wrapped(x, level) for tree in trees for x in tree.values()]
    with enable_inplace_requires_grad(True):
        for x in inputs:
            _set_tensor_requires_grad(x)
    return inputs


def _as_trees(tensors: Sequence[Tensor], trees: Sequence[Tensors]) -> list[Tensors]:
    """Tensors in the form of the trees."""
    remaining = iter(tensors)
    return [{k: next(remaining) for k in tree} for tree in trees]
