"""A module that computes with fast weights: a copy of it whose parameters are plain tensors.

The fast weights stand where parameters stand, so that everything works that works with the module: calls of
submodules, methods of its own, parametrizations, recurrent layers, hooks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.derivatives.kernels import twice_differentiable
from gimli_core.derivatives.modes import check_no_inference_mode
from gimli_core.errors import ClosedError, kind_of, unexpected
from gimli_core.inner_loop.checks import check_device, check_switch, listed
from gimli_core.inner_loop.deferred import Shared, deferring
from gimli_core.inner_loop.fast_weights import FastWeights
from gimli_core.inner_loop.structure import copied_structure, first_weight, uncompiled

__all__ = ["FunctionalModule", "buffer_sync", "make_functional", "monkeypatch"]


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

    Work that the module puts off until backward (`torch.utils.checkpoint`, hooks that read a weight there) is done with
    the fast weights of its own call. Compiled code is left aside. One functional module belongs to one thread: another
    may call it, but must not exchange its weights meanwhile. `copy.deepcopy` of one has weights of its own, detached.

    Cost: |theta| for a copy of the parameters, and the buffers.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> fmodel = inner_loop.monkeypatch(torch.nn.Linear(1, 1), copy_initial_weights=False)
    >>> weight, bias = fmodel.parameters()
    >>> fmodel(torch.ones(1), params=[weight * 0, bias * 0 + 3])
    tensor([3.], grad_fn=<ViewBackward0>)
    """
    if copy_initial_weights not in (0, 1):  # numbers too: existing scripts pass them
        check_switch("copy_initial_weights", copy_initial_weights)
    fmodel = make_functional(module, device=device)
    fmodel.track_higher_grads = track_higher_grads
    fmodel.update_params([first_weight(p, device, copy_initial_weights) for p in module.parameters()])
    return fmodel


def make_functional(
    module: nn.Module,
    encapsulator: Callable[[FunctionalModule, nn.Module], None] | None = None,
    device: torch.device | str | None = None,
) -> FunctionalModule:
    """A copy of `module` without fast weights of its own: every call needs `params`, or `update_params` before it.

    Args:
        encapsulator: is called with (the copy, `module`) at the end, to fill it.
        module, device: as in `monkeypatch`, whose errors are raised here too.
    """
    if not isinstance(module, nn.Module) or isinstance(module, (FunctionalModule, torch.jit.ScriptModule)):
        actual = "one already" if isinstance(module, FunctionalModule) else kind_of(module)
        raise unexpected("module", "an nn.Module written in Python", actual, "Pass the module that it was made from.")
    check_device(device)
    plain = uncompiled(module)
    fmodel = _functional(plain, _functional_class(type(plain)), device)  # type: ignore[arg-type]
    if encapsulator is not None:
        encapsulator(fmodel, module)
    return fmodel


def buffer_sync(module: nn.Module, fmodule: nn.Module, device: torch.device | str | None = None) -> None:
    """Copy the buffers of `module` as they are now into `fmodule`, which was made from it.

    Raises:
        ArgumentError: a submodule that `fmodule` does not have.
    """
    check_device(device)
    parts = dict(fmodule.named_modules())
    for name, part in uncompiled(module).named_modules():
        if name not in parts:
            raise unexpected("fmodule", f"a submodule {name!r}, as module has", "none", "Pass what was made from it.")
        for key, buffer in part._buffers.items():
            parts[name]._buffers[key] = None if buffer is None else buffer.detach().clone().to(device)


def _functional(module: nn.Module, kind: type[FunctionalModule], device: torch.device | str | None) -> FunctionalModule:
    check_no_inference_mode()
    copied, fast = copied_structure(module, kind, device)
    fmodel: FunctionalModule = copied
    vars(fmodel)["_fast_weights"] = fast
    return fmodel


class FunctionalModule(nn.Module):
    """What `monkeypatch` returns: the module's class, with fast weights in place of its parameters."""

    _fast_weights: FastWeights

    def __call__(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """The module's forward pass; `params`, if given, become the latest fast weights.

        Called in a backward pass (by a checkpoint around it), it computes with the fast weights of the first call.
        """
        fast = self._fast_weights
        postponed = fast.postponed()
        with fast.calling(), ExitStack() as conditions:
            weights = None if params is None else listed("params", params)
            if weights is not None and not postponed:
                fast.append(weights)
            if not fast.history:
                raise unexpected(
                    "params",
                    "fast weights",
                    "None, and the module has none of its own",
                    "Pass params=[...], or call update_params.",
                )
            if postponed:
                conditions.enter_context(fast.restored(fast.of_this_moment() if weights is None else weights))
            differentiable = fast.track and torch.is_grad_enabled()
            if fast.closed and differentiable and not fast.put_back:
                raise ClosedError(
                    "fmodel: expected a call inside its inner loop's context; got one after the end, where the graph "
                    "of its fast weights is released. Compute the outer loss inside the `with` block, or evaluate "
                    "under torch.no_grad()."
                )
            fast.check_untouched()
            kernels = _kernels(self) if differentiable else nullcontext
            conditions.enter_context(kernels())
            conditions.enter_context(deferring(self, kernels))
            return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FunctionalModule:
        """A functional module of its own: the latest fast weights detached, with the buffers as they are."""
        copied = _functional(self, type(self), None)
        copied.track_higher_grads = self.track_higher_grads
        if self._fast_weights.history:
            copied.update_params([first_weight(p, None, copy=True) for p in self._fast_weights.standing])
        memo[id(self)] = copied
        return copied

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Any]:
        """The fast weights, in the order of the module's own `parameters()`: the latest, or the set number `time`."""
        fast = self._fast_weights
        if not fast.history:
            raise unexpected("parameters()", "fast weights", "none yet", "Call update_params first.")
        time = -1 if time is None else time
        if not isinstance(time, int) or not -len(fast.history) <= time < len(fast.history):
            kept = (
                "only the latest, since higher gradients are not tracked"
                if not fast.track
                else f"{len(fast.history)} sets, from 0"
            )
            raise unexpected(
                "parameters(time=…)", f"a number within what is kept ({kept})", repr(time), "Choose one inside."
            )
        return iter(fast.history[time])

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Make `params` the latest fast weights."""
        self._fast_weights.append(listed("params", params))

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
            raise unexpected(
                "init_fast_params", "track_higher_grads=True", "False", "Without it only the latest are kept."
            )
        return self._fast_weights.history[0]

    @property
    def track_higher_grads(self) -> bool:
        """Whether every set of fast weights is remembered."""
        return self._fast_weights.track

    @track_higher_grads.setter
    def track_higher_grads(self, value: bool) -> None:
        check_switch("track_higher_grads", value)
        self._fast_weights.track = value


@functools.lru_cache(maxsize=128)
def _functional_class(kind: type[nn.Module]) -> type[FunctionalModule]:
    return type(f"Functional{kind.__name__}", (FunctionalModule, kind), {"__module__": kind.__module__})


_MATH = Shared(twice_differentiable)
_NO_CUDNN = Shared(lambda: torch.backends.cudnn.flags(enabled=False))


def _kernels(module: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """A choice of kernels that have a second derivative, where the fast ones have none."""
    recurrent = torch.backends.cudnn.is_available() and any(isinstance(part, nn.RNNBase) for part in module.modules())
    return _math_without_cudnn if recurrent else _math


def _math() -> AbstractContextManager[Any]:
    return _MATH


@contextmanager
def _math_without_cudnn() -> Iterator[None]:
    with _MATH, _NO_CUDNN:
        yield
