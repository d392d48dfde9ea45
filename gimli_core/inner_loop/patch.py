"""A module that computes with fast weights: a copy of it whose parameters are plain tensors.

The fast weights stand where parameters stand, so that everything works that works with the module: calls of
submodules, methods of its own, parametrizations, recurrent layers, hooks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.derivatives.kernels import twice_differentiable
from gimli_core.errors import ArgumentError, ClosedError, explain
from gimli_core.inner_loop.structure import FastWeights, copied_structure, first_weight

__all__ = ["FunctionalModule", "make_functional", "monkeypatch"]


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
    fmodel.update_params([first_weight(p, device, copy_initial_weights) for p in module.parameters()])
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
    copied, fast = copied_structure(module, _functional_class(type(module)), device)  # type: ignore[arg-type]
    fmodel: FunctionalModule = copied
    vars(fmodel)["_fast_weights"] = fast
    return fmodel


class FunctionalModule(nn.Module):
    """What `monkeypatch` returns: the module's class, with fast weights in place of its parameters."""

    _fast_weights: FastWeights

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


@functools.lru_cache(maxsize=128)
def _functional_class(kind: type[nn.Module]) -> type[FunctionalModule]:
    return type(f"Functional{kind.__name__}", (FunctionalModule, kind), {"__module__": kind.__module__})


def _enter_twice_differentiable(kernels: ExitStack, module: nn.Module) -> None:
    """Choose kernels that have a second derivative, where the fast ones have none."""
    kernels.enter_context(twice_differentiable())
    if torch.backends.cudnn.is_available() and any(isinstance(part, nn.RNNBase) for part in module.modules()):
        kernels.enter_context(torch.backends.cudnn.flags(enabled=False))
