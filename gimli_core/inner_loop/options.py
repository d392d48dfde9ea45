"""An optimizer's options as tensors: taken out to be learned, put back when they are."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import ArgumentError, unexpected
from gimli_core.inner_loop.checks import check_device, check_mapping, check_optimizer
from gimli_core.notation import Hyper
from gimli_core.optimizers.derived import own_root
from gimli_core.optimizers.interface import Optimizer
from gimli_core.trees import KeyPath, folded, mapped, nodes, path_text, rebuilt

__all__ = [
    "Override",
    "apply_trainable_opt_params",
    "as_hyper",
    "constant",
    "get_trainable_opt_params",
    "value_for_group",
]

Override = Mapping[str, Sequence[Any]]


def get_trainable_opt_params(
    opt: torch.optim.Optimizer, device: torch.device | str | None = None
) -> dict[str, list[Any]]:
    """Every number among an optimizer's options as a tensor that requires grad, in the form of an `override`.

    Pairs such as betas stay pairs. Switches (True, False) and what is not made of numbers are left out.

    Args:
        opt: the optimizer; it is left as it is.
        device: where the tensors go.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> opt = torch.optim.SGD([torch.zeros(1)], lr=0.5, momentum=0.25)
    >>> inner_loop.get_trainable_opt_params(opt)["lr"]
    [tensor(0.5000, requires_grad=True)]
    """

    check_optimizer(opt)
    check_device(device)

    def trainable(x: float | Tensor) -> Tensor:
        dtype = x.dtype if isinstance(x, Tensor) and x.is_floating_point() else torch.get_default_dtype()
        return torch.as_tensor(x, dtype=dtype, device=device).detach().clone().requires_grad_()

    groups = opt.param_groups
    names = [n for n in groups[0] if n != "params" and all(_all_numbers(group.get(n)) for group in groups)]
    return {name: [mapped(trainable, group[name]) for group in groups] for name in names}


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Override) -> None:
    """Put learned options back into an optimizer's groups, as numbers (or as tensors, where it had tensors).

    Args:
        opt: the optimizer; its groups change.
        override: `{name: [value]}` or `{name: [a value for each group]}`.

    Raises:
        ArgumentError: a list of another length, a value of another structure, more than one number for one.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> opt = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    >>> inner_loop.apply_trainable_opt_params(opt, {"lr": [torch.tensor(0.25)]})
    >>> opt.param_groups[0]["lr"]
    0.25
    """
    check_optimizer(opt)
    check_mapping("override", override, "{name: [value]}")
    for name, values in override.items():
        for i, group in enumerate(opt.param_groups):
            value = value_for_group(name, values, i, len(opt.param_groups), group.get(name))
            group[name] = _put_back(f"override[{name!r}]", value, group.get(name))


def value_for_group(name: str, values: Any, i: int, groups: int, present: Any) -> Any:
    """The entry of an override's list that group i uses."""
    sequence = values.ndim > 0 if isinstance(values, Tensor) else isinstance(values, (list, tuple))
    if not sequence or len(values) not in (1, groups):
        actual = f"{len(values)} values" if sequence else type(values).__name__
        raise unexpected(
            f"override[{name!r}]",
            f"a list with one value, or one for each of the {groups} groups",
            actual,
            "Write [value].",
        )
    value = values[0] if len(values) == 1 else values[i]
    if isinstance(present, bool) and isinstance(value, Tensor):
        raise unexpected(
            f"override[{name!r}]",
            "True or False, since it is a switch",
            "a tensor",
            "It has no derivative: leave it out.",
        )
    return value


def as_hyper(rule: Optimizer, thetas: Mapping[str, Tensor], label: str) -> Hyper:
    """A group's options as its rule takes them: 0-dimensional in float64, or of a tensor's own shape and dtype.

    Scalars are held in float64, so that 1 - beta^t is as exact as torch.optim's; the tensors of a device share them.
    A rule's own parameters stay as they are.
    """
    values, one_number = rule.hyperparameters(), rule.whole_tensor()
    scalars: dict[tuple[str, torch.device], Tensor] = {}
    hyper: Hyper = {}
    for k, theta in thetas.items():
        hyper[k] = {}
        for name, value in values.items():
            if isinstance(value, Tensor) and not value.is_floating_point():
                raise unexpected(
                    f"{name} {label}", "a floating-point tensor", f"{value.dtype}", "Convert it with .float()."
                )
            if isinstance(value, Tensor) and own_root(rule, name) is not None:
                hyper[k][name] = value
            elif isinstance(value, Tensor) and value.numel() > 1:
                if name in one_number:
                    actual = f"shape {list(value.shape)}"
                    raise unexpected(
                        f"{name} {label}", "one number, as it acts on whole tensors", actual, "Give each its own group."
                    )
                hyper[k][name] = _expanded(value, theta, f"{name} {label}")
            else:
                place = (name, theta.device)
                if place not in scalars:
                    scalars[place] = _scalar(value, theta.device, f"{name} {label}")
                hyper[k][name] = scalars[place]
    return hyper


def _scalar(value: float | Tensor, device: torch.device, label: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(value.device if value.device.type == "cpu" else device, torch.float64).reshape(())
    if not isinstance(value, Real):
        raise unexpected(label, "a number or a tensor", repr(value), "Convert it.")
    return constant(float(value))


@functools.lru_cache(maxsize=1024)
def constant(value: float) -> Tensor:
    """A number as a tensor, which nobody may change: it is made once."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64, device="cpu")


def _expanded(value: Tensor, theta: Tensor, label: str) -> Tensor:
    try:
        return value.to(theta).expand_as(theta)
    except RuntimeError:
        raise unexpected(
            label,
            f"one number, or a shape that broadcasts to {list(theta.shape)}",
            f"{list(value.shape)}",
            "Give parameters of other shapes a group of their own.",
        ) from None


def _all_numbers(value: Any) -> bool:
    """Whether there are numbers in it, and nothing else."""
    return all(
        bool(x)
        if isinstance(x, (Mapping, list, tuple))
        else isinstance(x, (int, float, Tensor)) and not isinstance(x, bool)
        for x in nodes(value)
    )


def _put_back(label: str, values: Any, target: Any) -> Any:
    """`values` in the form that `target` has: numbers for numbers, tensors for tensors, the same containers."""

    def refuse(path: KeyPath, value: Any, like: Any) -> ArgumentError:
        do = "Take the form from get_trainable_opt_params."
        return unexpected(path_text(path, label), f"a value in the form of {like!r}", type(value).__name__, do)

    def leaf(path: KeyPath, like: Any) -> Any:
        value = _part(values, path)
        if isinstance(like, Tensor) and isinstance(value, Tensor) and value.numel() == like.numel():
            return value.detach().reshape(like.shape).to(like)
        if isinstance(like, (int, float)) and isinstance(value, Tensor) and value.numel() == 1:
            return value.item()
        if isinstance(value, type(like)) and not isinstance(value, Tensor):
            return value
        raise refuse(path, value, like)

    def node(path: KeyPath, like: Any, results: dict[Any, Any]) -> Any:
        value = _part(values, path)
        if not isinstance(value, Mapping if isinstance(like, Mapping) else (list, tuple)) or len(value) != len(like):
            raise refuse(path, value, like)
        return rebuilt(path, like, results)

    return folded(target, leaf, node)


def _part(values: Any, path: KeyPath) -> Any:
    """What stands at a path; None where there is no such place."""
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values
