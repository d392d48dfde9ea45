"""A module that computes with fast weights: a copy of its structure whose parameters are plain tensors.

    what the module owns               in the copy
    parameters, tied ones once         fast weights: tensors that carry autograd history
    buffers                            cloned, so that the original's stay as they are
    submodules, hooks                  copied, and bound to the copy
    every other attribute              shared, by reference

The fast weights stand where parameters stand, so that everything works that works with the module: calls of
submodules, methods of its own, parametrizations, recurrent layers, hooks.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gimli_core.errors import ArgumentError, ClosedError, explain

__all__ = ["FunctionalModule", "make_functional", "monkeypatch"]

_INTERNAL = frozenset(vars(nn.Module()))  # the containers that every module has for itself
_LONGEST = 4096  # a longer list holds data, not parts of a module


def monkeypatch(
    module: nn.Module,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
) -> FunctionalModule:
    """A copy of `module` that computes with fast weights, and starts from the module's own.

    Args:
        module: any `nn.Module`; it is left as it is.
        device: where fast weights and buffers go; by default where the module's are.
        copy_initial_weights: start from detached copies. With False the first fast weights are tied to the
            module's parameters, so that gradients reach these, as for a learned initialisation.
        track_higher_grads: remember every set of fast weights, for `parameters(time=...)`. With False only the
            latest is kept.

    Returns:
        FunctionalModule: an instance of `module`'s own class as well.

    Raises:
        ArgumentError: not a module, a module that is functional already, or one that has been scripted.

    Cost: |theta| for a copy of the parameters, and the buffers.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> fmodel = inner_loop.monkeypatch(torch.nn.Linear(1, 1), copy_initial_weights=False)
    >>> weight, bias = fmodel.parameters()
    >>> fmodel(torch.ones(1), params=[weight * 0, bias * 0 + 3])
    tensor([3.], grad_fn=<ViewBackward0>)
    """
    fmodel = make_functional(module, device)
    fmodel.track_higher_grads = track_higher_grads
    fmodel.update_params([_initial(p, device, copy_initial_weights) for p in module.parameters()])
    return fmodel


def make_functional(module: nn.Module, device: torch.device | str | None = None) -> FunctionalModule:
    """A copy of `module` without fast weights of its own: every call needs `params`, or `update_params` before it.

    Arguments and errors as in `monkeypatch`.
    """
    if not isinstance(module, nn.Module) or isinstance(module, (FunctionalModule, torch.jit.ScriptModule)):
        came = "one already" if isinstance(module, FunctionalModule) else f"a {type(module).__name__}"
        raise ArgumentError(
            explain("module", "an nn.Module written in Python", came, "Pass the module that it was made from.")
        )
    copies: dict[int, Any] = {}
    for part in module.modules():
        kind: type[nn.Module] = _functional_class(type(part)) if part is module else type(part)  # type: ignore[arg-type]
        copies[id(part)] = kind.__new__(kind)
    for buffer in module.buffers():
        copies[id(buffer)] = _initial(buffer, device, copy=not buffer.requires_grad)
    fast = _FastWeights(dict(module.named_parameters()))
    for part in module.modules():
        _fill(copies[id(part)], part, copies, fast)
    fmodel: FunctionalModule = copies[id(module)]
    vars(fmodel)["_fast_weights"] = fast
    return fmodel


class FunctionalModule(nn.Module):
    """What `monkeypatch` returns: the module's class, with fast weights in place of its parameters."""

    _fast_weights: _FastWeights

    def __call__(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """The module's forward pass; `params`, if given, become the latest fast weights."""
        fast = self._fast_weights
        if params is not None:
            self.update_params(params)
        if not fast.history:
            raise ArgumentError(
                explain(
                    "params",
                    "fast weights",
                    "None, and the module has none of its own",
                    "Pass params=[...], or call update_params.",
                )
            )
        differentiable = fast.track and torch.is_grad_enabled()
        if fast.closed and differentiable:
            raise ClosedError(
                "fmodel: expected a call inside its inner loop's context; got one after the end, where the graph of "
                "its fast weights is released. Compute the outer loss inside the `with` block, or evaluate under "
                "torch.no_grad()."
            )
        fast.check_untouched()
        with ExitStack() as kernels:
            if differentiable:
                _enter_twice_differentiable(kernels, self)
            return super().__call__(*args, **kwargs)

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Any]:
        """The fast weights, in the order of the module's own `parameters()`: the latest, or the set number `time`."""
        fast = self._fast_weights
        if not fast.history:
            raise ArgumentError(explain("parameters()", "fast weights", "none yet", "Call update_params first."))
        time = -1 if time is None else time
        if not -len(fast.history) <= time < len(fast.history):
            kept = (
                "only the latest, since higher gradients are not tracked"
                if not fast.track
                else f"{len(fast.history)} sets, from 0"
            )
            raise ArgumentError(
                explain(
                    "parameters(time=…)", f"a number within what is kept ({kept})", repr(time), "Choose one inside."
                )
            )
        return iter(fast.history[time])

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Make `params` the latest fast weights."""
        self._fast_weights.append(list(params))

    @property
    def fast_params(self) -> list[Tensor] | None:
        """The latest fast weights."""
        return self._fast_weights.history[-1] if self._fast_weights.history else None

    @fast_params.setter
    def fast_params(self, params: Iterable[Tensor]) -> None:
        self.update_params(params)

    @property
    def init_fast_params(self) -> list[Tensor]:
        """The first fast weights."""
        if not self._fast_weights.track:
            raise ArgumentError(
                explain("init_fast_params", "track_higher_grads=True", "False", "Without it only the latest are kept.")
            )
        return self._fast_weights.history[0]

    @property
    def track_higher_grads(self) -> bool:
        """Whether every set of fast weights is remembered."""
        return self._fast_weights.track

    @track_higher_grads.setter
    def track_higher_grads(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ArgumentError(explain("track_higher_grads", "True or False", repr(value), "Choose one."))
        self._fast_weights.track = value


class _FastWeights:
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


@functools.lru_cache(maxsize=128)
def _functional_class(kind: type[nn.Module]) -> type[FunctionalModule]:
    return type(f"Functional{kind.__name__}", (FunctionalModule, kind), {"__module__": kind.__module__})


def _initial(tensor: Tensor, device: torch.device | str | None, copy: bool) -> Tensor:
    """A first fast weight: a detached copy that requires grad if the parameter does, or a tied one."""
    if not copy:
        return tensor.clone().to(device)
    return tensor.detach().clone().to(device).requires_grad_(tensor.requires_grad)


def _fill(part: nn.Module, original: nn.Module, copies: dict[int, Any], fast: _FastWeights) -> None:
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


def _enter_twice_differentiable(kernels: ExitStack, module: nn.Module) -> None:
    """Choose kernels that have a second derivative, where the fast ones have none."""
    kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
    if torch.backends.cudnn.is_available() and any(isinstance(part, nn.RNNBase) for part in module.modules()):
        kernels.enter_context(torch.backends.cudnn.flags(enabled=False))
