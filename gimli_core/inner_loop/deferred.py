"""Work that a model puts off until backward is done under the conditions of its own forward call.

`torch.utils.checkpoint` frees what a block computes and calls the block again in backward. By then later fast weights
stand in the module, its buffers have moved, it may have been put into eval mode, and the call's choice of kernels is
over. Like everything that is put off by saved-tensor hooks, it goes through the `unpack` of the hooks that were entered
in the forward call; so each of these is made to find all of it as it was.

Reentrant checkpoints, which start a backward pass of their own that reaches no fast weight, become the others here.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gimli_core.inner_loop.fast_weights import FastWeights

__all__ = ["Shared", "deferring"]

Conditions = Callable[[], AbstractContextManager[Any]]
_here = threading.local()  # .call: the module and the kernels of the innermost forward call of this thread


class Shared:
    """A context of the whole process that several threads may be in: entered by the first, left by the last."""

    def __init__(self, make: Conditions) -> None:
        self._make, self._lock, self._count, self._entered = make, threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._count == 0:
                self._entered.enter_context(self._make())
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._entered.close()


@contextmanager
def deferring(module: nn.Module, kernels: Conditions) -> Iterator[None]:
    """A forward call of a functional module; `kernels` is what it computes under."""
    outer = getattr(_here, "call", None)
    _here.call = (module, kernels)
    try:
        with _INTERCEPTED:
            yield
    finally:
        _here.call = outer


_ENTER, _REENTRANT = saved_tensors_hooks.__enter__, torch.utils.checkpoint.CheckpointFunction


@contextmanager
def _intercepted() -> Iterator[None]:
    """Hooks and reentrant checkpoints entered meanwhile, by threads that are in a forward call, are bound to it."""
    saved_tensors_hooks.__enter__ = _bound_enter  # type: ignore[method-assign]
    torch.utils.checkpoint.CheckpointFunction = _Checkpoint  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        saved_tensors_hooks.__enter__ = _ENTER  # type: ignore[method-assign]
        torch.utils.checkpoint.CheckpointFunction = _REENTRANT  # type: ignore[misc]


def _bound_enter(hooks: saved_tensors_hooks) -> None:
    call = getattr(_here, "call", None)
    _ENTER(hooks if call is None else saved_tensors_hooks(hooks.pack_hook, _bound(hooks.unpack_hook, *call)))


class _Checkpoint:
    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if getattr(_here, "call", None) is None:
            return _REENTRANT.apply(function, preserve, *args)
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)


_INTERCEPTED = Shared(_intercepted)


def _bound(unpack: Callable[[Any], Tensor], module: nn.Module, kernels: Conditions) -> Callable[[Any], Tensor]:
    """`unpack` under the weights, buffers, modes and kernels of now."""
    fast: FastWeights = module._fast_weights  # type: ignore[assignment]
    # The weights are older than the graph that this goes into; all that leads to later ones is held weakly.
    params, owner = fast.standing, weakref.ref(fast)
    parts = [
        (weakref.ref(part), part.training, {k: _copied(b) for k, b in part._buffers.items() if b is not None})
        for part in module.modules()
    ]

    @functools.wraps(unpack)
    def bound(packed: Any) -> Tensor:
        with kernels(), ExitStack() as undo:
            if (fast := owner()) is not None:
                undo.enter_context(fast.restored(params))
            for place, training, buffers in parts:
                if (part := place()) is not None:
                    undo.callback(_put, part, part.training, {k: part._buffers.get(k) for k in buffers})
                    _put(part, training, {k: _copied(b) for k, b in buffers.items()})
            return unpack(packed)

    return bound


def _copied(buffer: Tensor) -> Tensor:
    return buffer if buffer.requires_grad else buffer.clone()


def _put(part: nn.Module, training: bool, buffers: dict[str, Any]) -> None:
    vars(part)["training"] = training
    for key, buffer in buffers.items():
        part._buffers[key] = buffer
