"""When an inner loop has gone far enough: what `until=` may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import check_switch, unexpected
from gimli_core.notation import Tensors

__all__ = ["Until", "check_until"]


@dataclass(frozen=True)
class Until:
    """An inner loop ends before the first step j at which one of these holds; J is then what was run.

    Args:
        grad_norm: ‖G_j‖ over all tensors is at most this.
        loss_change: |ℓ_j - ℓ_{j-1}| is at most this, from j = 1 on.
        test: a function `(j, loss, theta, G) -> bool`; of T tasks its tensors are `[T, …]`, and it returns `[T]`.
        strict: whether it is an error if none holds in any of the steps; else all of them are run.

    Raises:
        ArgumentError: nothing to stop at, a tolerance that is no number >= 0.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (theta["w"] ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0 = {"w": torch.ones(1)}
    >>> len(gimli.adapt(problem, theta_0, lambda j: None, steps=100, until=gimli.Until(grad_norm=0.1)).train_losses)
    4
    """

    grad_norm: float | None = None
    loss_change: float | None = None
    test: Callable[[int, Tensor, Tensors, Tensors], Any] | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        check_switch("Until(strict=…)", self.strict)
        for name in ("grad_norm", "loss_change"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < math.inf):
                raise unexpected(f"Until({name}=…)", "a number >= 0", repr(value), "For example 1e-6.")
        if self.test is not None and not callable(self.test):
            do = "It is called with (j, loss, theta, G)."
            raise unexpected("Until(test=…)", "a function", repr(self.test), do)
        if self.grad_norm is None and self.loss_change is None and self.test is None:
            do = "For example gimli.Until(grad_norm=1e-6)."
            raise unexpected("Until", "something to stop at", "nothing", do)

    def holds(self, j: int, loss: Tensor, before: Tensor | None, theta: Tensors, G: Tensors) -> Tensor:
        """Whether step j is not to be run any more: of shape [], or [T]. `before` is the loss of step j - 1."""
        reached = torch.zeros_like(loss, dtype=torch.bool)
        if self.grad_norm is not None:
            reached = reached | (norm(G, loss.ndim) <= self.grad_norm)
        if self.loss_change is not None and before is not None:
            reached = reached | ((loss - before).abs() <= self.loss_change)
        if self.test is not None:
            told = torch.as_tensor(self.test(j, loss, theta, G))
            if told.dtype != torch.bool or told.shape not in ((), loss.shape):
                expected = f"a bool, or a tensor of them of shape {list(loss.shape)}"
                do = "Compare with a number: loss < 0.1."
                raise unexpected("Until(test=…)", expected, f"{told.dtype} {list(told.shape)}", do)
            reached = reached | told.to(loss.device)
        return reached


def norm(G: Tensors, lead: int) -> Tensor:
    """The norm over all tensors, of each task if there is a leading dimension of them. A scalar, or [T]."""
    squares = [g.flatten(lead).square().sum(-1) if g.ndim > lead else g.square() for g in G.values()]
    return torch.stack(squares).sum(0).sqrt()


def check_until(until: Any, val_weights: Any) -> Until | None:
    """`until=` as an object; a function alone is its test. Raises ArgumentError."""
    if until is None or isinstance(until, Until):
        pass
    elif callable(until) and not isinstance(until, type):
        until = Until(test=until)
    else:
        do = "For example gimli.Until(grad_norm=1e-6), or a function (j, loss, theta, G) -> bool."
        raise unexpected("until", "a gimli.Until, a function or None", repr(until), do)
    if until is not None and val_weights is not None:
        actual, do = (
            "weights beside it",
            "Only L_val(theta_J) has a weight then; how many steps there are is not known.",
        )
        raise unexpected("val_weights", "None where until= ends the inner loop", actual, do)
    return until  # type: ignore[no-any-return]
