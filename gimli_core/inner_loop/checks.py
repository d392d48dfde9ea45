"""Arguments of the inner loop, each looked at before it is worked with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.errors import unexpected

__all__ = [
    "check_callback",
    "check_device",
    "check_loss",
    "check_mapping",
    "check_optimizer",
    "check_switch",
    "listed",
    "listed_tensors",
    "matching_gradients",
]


def check_loss(loss: Any) -> None:
    """One real number that can be differentiated."""
    if not isinstance(loss, Tensor):
        _refuse("loss", "a tensor", _kind(loss), "Compute it from fmodel, without .item().")
    if loss.numel() != 1:
        do = "Reduce it with .sum() or .mean(): which of the two is meant changes the step."
        _refuse("loss", "one number", f"shape {list(loss.shape)}", do)
    if loss.is_complex():
        _refuse("loss", "a real number", str(loss.dtype), "Take its .real or .abs().")


def check_device(device: Any) -> None:
    """None, or a device that this torch can put a tensor on."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        first = str(error).splitlines()[0]
        _refuse("device", 'None, or a device that is there ("cpu", "cuda:0")', f"{device!r} ({first})", "Choose one.")


def check_switch(name: str, value: Any) -> None:
    """True or False: a word or a number might be meant as either."""
    if not isinstance(value, bool):
        _refuse(name, "True or False", repr(value), "Choose one.")


def check_mapping(name: str, value: Any, form: str) -> None:
    """A dict."""
    if not isinstance(value, Mapping):
        _refuse(name, form, _kind(value), "Pass a dict.")


def check_optimizer(opt: Any) -> None:
    """An instance of a torch.optim class."""
    if not isinstance(opt, torch.optim.Optimizer):
        _refuse("opt", "an instance of a torch.optim class", _kind(opt), "For a class use create_diff_optim.")


def check_callback(callback: Any) -> None:
    """Something to call."""
    if callback is not None and not callable(callback):
        _refuse("grad_callback", "a function from a list of gradients to a list", _kind(callback), "Pass a function.")


def listed(name: str, values: Any, of: str = "tensors") -> list[Any]:
    """A list of what can be gone through once."""
    if not isinstance(values, Iterable) or isinstance(values, (Tensor, nn.Module, str, Mapping)):
        _refuse(name, f"a list of {of}", _kind(values), "Pass them one by one, in the order of parameters().")
    return list(values)


def listed_tensors(name: str, values: Any) -> list[Tensor]:
    """A list of tensors. Of any shapes. Raises ArgumentError."""
    tensors = listed(name, values)
    for i, value in enumerate(tensors):
        if not isinstance(value, Tensor):
            _refuse(f"{name}, at {i}", "a tensor", _kind(value), "Pass the tensors themselves.")
    return tensors


def matching_gradients(changed: Any, G: Sequence[Tensor | None], name: Callable[[int], str]) -> Sequence[Tensor | None]:
    """What a grad_callback returned for G: one for one, or None; `name` says what number i is called."""
    gradients = listed("grad_callback's value", changed, "gradients, one for each")
    for i, (g, new) in enumerate(zip(G, gradients, strict=False)):
        if new is not None and (g is None or not isinstance(new, Tensor) or new.shape != g.shape):
            actual = "None, or another shape or type" if g is not None else "a gradient where there was none"
            expected = "a tensor shaped like the gradient, or None"
            _refuse(f"grad_callback, at {name(i)}", expected, actual, "Return one for one.")
    if len(gradients) != len(G):
        expected = f"a list of {len(G)} gradients back"
        _refuse("grad_callback", expected, f"{len(gradients)}", "Return one for each, in order.")
    return gradients


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _refuse(argument: str, expected: str, actual: str, do: str) -> None:
    raise unexpected(argument, expected, actual, do)
