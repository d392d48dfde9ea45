"""The structure of a module, copied so that any tensors can stand in it in place of its parameters.

what the module owns               in the copy
parameters, tied ones once         fast weights: tensors that carry autograd history
buffers                            cloned, so that the original's stay as they are
submodules, hooks                  copied, and bound to the copy
every other attribute              shared, by reference
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.inner_loop.fast_weights import FastWeights, Home

__all__ = ["copied_structure", "first_weight", "uncompiled"]

_INTERNAL = frozenset(vars(nn.Module()))  # the containers that every module has for itself
_LONGEST = 4096  # a longer list holds data, not parts of a module
_ATOMS = frozenset({bool, int, float, str})
_COMPILED = "_compiled_call_impl"  # what module.compile() leaves: it computes with the module that it was made from


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside what `torch.compile` returns; any other module itself.

    Compiled code computes with the module that it was made from, and has no second derivative.
    """
    inner = module._modules.get("_orig_mod")
    return module if inner is None else uncompiled(inner)


def copied_structure(
    module: nn.Module, root: type[nn.Module], device: torch.device | str | None
) -> tuple[Any, FastWeights]:
    """A copy of `module` of class `root`, and the fast weights that it is to compute with, none yet."""
    parts = list({id(plain): plain for plain in map(uncompiled, module.modules())}.values())
    copies: dict[int, Any] = {}
    for part in parts:
        kind = root if part is module else type(part)
        copies[id(part)] = kind.__new__(kind)
    for wrapper in module.modules():
        copies[id(wrapper)] = copies[id(uncompiled(wrapper))]
    for buffer in module.buffers():
        copies[id(buffer)] = first_weight(buffer, device, copy=not buffer.requires_grad)
    fast = FastWeights(dict(module.named_parameters()), _exchanged)
    for part in parts:
        _fill(copies[id(part)], part, copies, fast)
    return copies[id(module)], fast


def first_weight(tensor: Tensor, device: torch.device | str | None, copy: bool) -> Tensor:
    """A first fast weight: a detached copy that requires grad if the parameter does, or a tied one.

    It has the shape of the parameter.
    """
    if not copy:
        return tensor.clone().to(device)
    return tensor.detach().clone().to(device).requires_grad_(tensor.requires_grad)


def _fill(part: nn.Module, original: nn.Module, copies: dict[int, Any], fast: FastWeights) -> None:
    """Give a copy its attributes, and note where it holds parameters."""
    number = {id(p): i for i, p in enumerate(fast.originals)}
    attributes = vars(part)
    for key, value in vars(original).items():
        exchanged = None if key == _COMPILED else _exchanged(value, copies)
        if key in _INTERNAL and exchanged is value and isinstance(value, (dict, set)):
            exchanged = value.copy()
        attributes[key] = exchanged
        if key not in _INTERNAL and _exchanged(exchanged, dict.fromkeys(number)) is not exchanged:
            fast.aliases.append((weakref.ref(part), key, exchanged))
    home = attributes["_parameters"] = Home(attributes["_parameters"], fast)
    for key, parameter in original._parameters.items():
        if parameter is not None:
            fast.homes[number[id(parameter)]].append((weakref.ref(home), key))


def _exchanged(value: Any, copies: dict[int, Any], depth: int = 0) -> Any:
    """`value` with all that has a copy exchanged for it, inside containers, bound methods and partials too.

    The object itself where nothing is exchanged.
    """
    if value is None or type(value) in _ATOMS:
        return value
    if id(value) in copies:
        return copies[id(value)]
    if depth > 4:
        return value
    if type(value) in (list, tuple, set) and len(value) <= _LONGEST:
        items = [_exchanged(item, copies, depth + 1) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    if type(value) in (dict, OrderedDict) and len(value) <= _LONGEST:
        items = [_exchanged(item, copies, depth + 1) for item in value.values()]
        return (
            value
            if all(a is b for a, b in zip(items, value.values(), strict=True))
            else type(value)(zip(value, items, strict=True))
        )
    if isinstance(value, MethodType):
        owner = _exchanged(value.__self__, copies, depth + 1)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if type(value) is functools.partial:
        old = (value.func, value.args, value.keywords)
        new = _exchanged(old, copies, depth + 1)
        return value if new is old else functools.partial(new[0], *new[1], **new[2])
    return value
