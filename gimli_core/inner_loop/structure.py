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
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.errors import ArgumentError, explain

__all__ = ["FastWeights", "copied_structure", "first_weight"]

_INTERNAL = frozenset(vars(nn.Module()))  # the containers that every module has for itself
_LONGEST = 4096  # a longer list holds data, not parts of a module


class FastWeights:
    """Every set of fast weights of one functional module, and where in it the latest stands."""

    def __init__(self, originals: Mapping[str, Tensor]) -> None:
        self.names = list(originals)
        self.originals = list(originals.values())
        self.history: list[list[Tensor]] = []
        self.track = True
        self.closed = False
        # Where a parameter stands: (a module's _parameters, key). What else holds parameters: (a module, weakly since
        # this object hangs from one; the attribute; its value with the originals in it).
        self.homes: list[list[tuple[dict[str, Any], str]]] = [[] for _ in self.names]
        self.aliases: list[tuple[weakref.ref[nn.Module], str, Any]] = []
        self._versions: list[int] = []

    def append(self, params: list[Tensor]) -> None:
        """A new set, which becomes the latest."""
        if len(params) != len(self.names):
            raise ArgumentError(
                explain(
                    "params",
                    f"{len(self.names)} tensors, one a parameter",
                    f"{len(params)}",
                    "Keep the order of parameters().",
                )
            )
        for name, value, original in zip(self.names, params, self.originals, strict=True):
            if not isinstance(value, Tensor) or value.shape != original.shape:
                came = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ArgumentError(
                    explain(
                        f"params, at {name!r}",
                        f"a tensor of shape {list(original.shape)}",
                        came,
                        "Keep the order of parameters().",
                    )
                )
        if not self.track:
            self.history.clear()
        self.history.append(params)
        self._install(params)

    def close(self) -> None:
        """Keep only the latest values, without their graph."""
        self.closed = True
        latest = [p.detach() for p in self.history[-1]] if self.history else []
        self.history = [latest] if self.history else []
        if latest:
            self._install(latest)

    def check_untouched(self) -> None:
        """Raise unless the latest fast weights stand in the module as they were put there."""
        for name, value, version, homes in zip(self.names, self.history[-1], self._versions, self.homes, strict=True):
            if value._version != version:
                raise ArgumentError(
                    explain(
                        f"fast weight {name!r}",
                        "no change in place, which has no derivative",
                        "one since it was made",
                        "Compute a new tensor, and pass the whole list to fmodel.update_params(...).",
                    )
                )
            if any(home.get(key) is not value for home, key in homes):
                raise ArgumentError(
                    explain(
                        f"fast weight {name!r}",
                        "the tensor that was put there",
                        "another one, assigned since",
                        "Pass the whole list to fmodel.update_params(...).",
                    )
                )

    def _install(self, params: list[Tensor]) -> None:
        self._versions = [p._version for p in params]
        for homes, value in zip(self.homes, params, strict=True):
            for home, key in homes:
                home[key] = value
        swap = {id(p): value for p, value in zip(self.originals, params, strict=True)}
        for part, key, template in self.aliases:
            if (held := part()) is not None:
                vars(held)[key] = _exchanged(template, swap)


def copied_structure(
    module: nn.Module, root: type[nn.Module], device: torch.device | str | None
) -> tuple[Any, FastWeights]:
    """A copy of `module` of class `root`, and the fast weights that it is to compute with, none yet."""
    copies: dict[int, Any] = {}
    for part in module.modules():
        kind = root if part is module else type(part)
        copies[id(part)] = kind.__new__(kind)
    for buffer in module.buffers():
        copies[id(buffer)] = first_weight(buffer, device, copy=not buffer.requires_grad)
    fast = FastWeights(dict(module.named_parameters()))
    for part in module.modules():
        _fill(copies[id(part)], part, copies, fast)
    return copies[id(module)], fast


def first_weight(tensor: Tensor, device: torch.device | str | None, copy: bool) -> Tensor:
    """A first fast weight: a detached copy that requires grad if the parameter does, or a tied one."""
    if not copy:
        return tensor.clone().to(device)
    return tensor.detach().clone().to(device).requires_grad_(tensor.requires_grad)


def _fill(part: nn.Module, original: nn.Module, copies: dict[int, Any], fast: FastWeights) -> None:
    """Give a copy its attributes, and note where it holds parameters."""
    number = {id(p): i for i, p in enumerate(fast.originals)}
    attributes = vars(part)
    for key, value in vars(original).items():
        exchanged = _exchanged(value, copies)
        if key in _INTERNAL and exchanged is value and isinstance(value, (dict, set)):
            exchanged = value.copy()
        attributes[key] = exchanged
        if key not in _INTERNAL and _exchanged(exchanged, dict.fromkeys(number)) is not exchanged:
            fast.aliases.append((weakref.ref(part), key, exchanged))
    for key, parameter in original._parameters.items():
        if parameter is not None:
            fast.homes[number[id(parameter)]].append((attributes["_parameters"], key))


def _exchanged(value: Any, copies: dict[int, Any], depth: int = 0) -> Any:
    """`value` with all that has a copy exchanged for it, inside containers, bound methods and partials too.

    The object itself where nothing is exchanged.
    """
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
