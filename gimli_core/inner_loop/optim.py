"""Optimizers of existing code, made differentiable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.inner_loop.checks import check_mapping, check_optimizer, listed, listed_tensors
from gimli_core.inner_loop.differentiable_optimizer import DifferentiableOptimizer
from gimli_core.inner_loop.options import Override, apply_trainable_opt_params, get_trainable_opt_params
from gimli_core.inner_loop.patch import FunctionalModule
from gimli_core.inner_loop.rules import register_optim, registered

__all__ = [
    "DifferentiableASGD",
    "DifferentiableAdadelta",
    "DifferentiableAdagrad",
    "DifferentiableAdam",
    "DifferentiableAdamW",
    "DifferentiableAdamax",
    "DifferentiableOptimizer",
    "DifferentiableRMSprop",
    "DifferentiableRprop",
    "DifferentiableSGD",
    "apply_trainable_opt_params",
    "create_diff_optim",
    "get_diff_optim",
    "get_trainable_opt_params",
    "register_optim",
]


def get_diff_optim(
    opt: torch.optim.Optimizer,
    reference_params: Iterable[Tensor],
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """The differentiable counterpart of a live optimizer, which is left as it is.

    Args:
        opt: an optimizer of a class that has a rule; its groups, options and state are copied.
        reference_params: the parameters of its model, as `module.parameters()` gives them.
        fmodel: the functional module whose fast weights are stepped; without one, pass `params` to each step.
        device: where the state goes; by default where it is.
        override: options in place of the optimizer's own, `{name: [value]}` for all groups or `{name: [a value for each
            group]}`. A value may be a tensor, and then has a gradient: one number, or anything that broadcasts to
            the parameters.
        track_higher_grads: with False, plain steps whose fast weights have no history.
        grad_callback: as in `DifferentiableOptimizer.step`, for every step.

    Raises:
        ArgumentError: an optimizer without a rule, a parameter that the model does not have, an unknown option.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> w, lr = torch.zeros(1, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    >>> opt = torch.optim.SGD([w], lr=0.1)
    >>> diffopt = inner_loop.get_diff_optim(opt, [w], override={"lr": [lr]})
    >>> (w_1,) = diffopt.step(((w - 1) ** 2).sum(), params=[w])     # w_1 = 2 lr
    >>> w_1.backward()
    >>> lr.grad
    tensor(2.)
    """
    check_optimizer(opt)
    made = registered(type(opt))
    kind = made if isinstance(made, type) and issubclass(made, DifferentiableOptimizer) else DifferentiableOptimizer
    return kind(
        opt,
        reference_params,
        fmodel=fmodel,
        device=device,
        override=override,
        track_higher_grads=track_higher_grads,
        **kwargs,
    )


def create_diff_optim(
    opt_type: type[torch.optim.Optimizer],
    opt_kwargs: Mapping[str, Any] | None = None,
    params: Iterable[Any] | None = None,
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """A new differentiable optimizer, from a class and its options.

    Args:
        opt_type: a class of `torch.optim`, or a registered one.
        opt_kwargs: what its constructor is called with.
        params: tensors whose shapes it is made for, or parameter groups with such tensors; `fmodel`'s by default.
        fmodel, device, override, track_higher_grads, grad_callback: as in `get_diff_optim`.

    Raises:
        ArgumentError: neither params nor fmodel, and what `get_diff_optim` raises.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> w = torch.zeros(1, requires_grad=True)
    >>> diffopt = inner_loop.create_diff_optim(torch.optim.SGD, {"lr": 0.25}, params=[w])
    >>> diffopt.step(((w - 1) ** 2).sum(), params=[w])
    [tensor([0.5000], grad_fn=<_StepBackward>)]
    """
    registered(opt_type)
    if params is None and fmodel is None:
        raise unexpected("params", "tensors, or fmodel=… in their place", "neither", "Pass one of the two.")
    listed_params = listed("params", fmodel.parameters() if params is None and fmodel is not None else params)
    if not listed_params:
        raise unexpected("params", "at least one tensor", "none", "Pass those that are to be stepped.")
    groups = [
        _like(g) for g in (listed_params if isinstance(listed_params[0], Mapping) else [{"params": listed_params}])
    ]
    options = {} if opt_kwargs is None else opt_kwargs
    check_mapping("opt_kwargs", options, f"the options of {opt_type.__name__}, {{name: value}}")
    try:
        opt = opt_type(groups, **options)
    except TypeError as error:
        name = opt_type.__name__
        raise unexpected("opt_kwargs", f"options of {name}", str(error), "Rename or remove it.") from error
    reference = [p for group in groups for p in group["params"]]
    return get_diff_optim(
        opt, reference, fmodel=fmodel, device=device, override=override, track_higher_grads=track_higher_grads, **kwargs
    )


def _like(group: Any) -> dict[str, Any]:
    """The group, with zeros in place of its tensors."""
    check_mapping("params", group, "tensors alone, or groups alone")
    if "params" not in group:
        raise unexpected("params", 'groups with an entry "params"', f"{list(group)}", "Put tensors there.")
    params = group["params"]
    tensors = listed_tensors("params", [params] if isinstance(params, Tensor) else params)
    return {**group, "params": [torch.zeros_like(p, requires_grad=True) for p in tensors]}


def _named(kind: type[torch.optim.Optimizer]) -> type[DifferentiableOptimizer]:
    about = f"A differentiable optimizer that steps as `torch.optim.{kind.__name__}`, for `register_optim`."
    body = {"stands_for": kind, "__doc__": about, "__module__": __name__}
    return type(f"Differentiable{kind.__name__}", (DifferentiableOptimizer,), body)


# Names that existing scripts register for optimizers of their own, or inherit from.
DifferentiableASGD = _named(torch.optim.ASGD)
DifferentiableAdadelta = _named(torch.optim.Adadelta)
DifferentiableAdagrad = _named(torch.optim.Adagrad)
DifferentiableAdam = _named(torch.optim.Adam)
DifferentiableAdamW = _named(torch.optim.AdamW)
DifferentiableAdamax = _named(torch.optim.Adamax)
DifferentiableRMSprop = _named(torch.optim.RMSprop)
DifferentiableRprop = _named(torch.optim.Rprop)
DifferentiableSGD = _named(torch.optim.SGD)
