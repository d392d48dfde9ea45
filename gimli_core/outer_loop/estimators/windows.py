"""Truncated windows of one long inner loop: T1-T2 truncation, in which theta, s and the rule's state are carried on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gimli_core.outer_loop.estimators.inner import Inner, InnerLoop, swept, walked
from gimli_core.outer_loop.estimators.window import Reached, check_window, reached, window
from gimli_core.outer_loop.randomness import leaving
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient

__all__ = ["Windows"]


class Windows:
    """dL/dphi through a window of an inner loop that goes on from outer step to outer step.

    An inner loop of J steps is taken in windows of `length` steps (T2); each begins `carry` steps (T1) after the last,
    where theta and s are constants. L is what L_val is at the window's end. After J steps a new inner loop begins.

        window i:  L = L_val(theta_{ic + length}),   dL/dphi with theta_{ic}, s_{ic} held constant,   c = carry

    What is left out is how phi acts through the steps before the window: a bias towards what helps at once. The first
    window leaves out nothing, and a window of all J steps is `Unrolled`.

    Args:
        problem, phi, inner, arguments: as for `gimli.Unrolled`. `inner` describes the whole inner loop; its batches are
            asked for by j = 0 … J - 1. `val_weights` are those of a window; hyperparameters that count steps must be
            marked `gimli.per_step`.
        length: inner steps that are swept.
        carry: inner steps from one window to the next; `length` by default.
        steps: J, such that the last window ends there.

    An outer loop draws anew only when a new inner loop begins: after (J - length) / carry + 1 outer steps.
    Buffers of modules are not carried on.

    Raises:
        ArgumentError, and when it is called what `gimli.unroll` raises.

    Cost: a meta-gradient of `length` steps; with a smaller carry 3F for each of its steps besides. Memory does not
    grow with J.
    Source: Williams and Peng 1990; Wu et al. 2018, Understanding Short-Horizon Bias in Stochastic Meta-Optimization.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD())
    >>> phi = {"lr": torch.tensor(0.5, requires_grad=True)}
    >>> def inner(phi, target):
    ...     return {"theta_0": {"w": torch.zeros(1)}, "train_batches": lambda j: target, "val_batch": target,
    ...             "phi_opt": {"lr": phi["lr"]}}
    >>> estimator = gimli.Windows(problem, phi, inner, length=1, steps=2)
    >>> [estimator(torch.ones(1)).A["lr"] for _ in range(2)]        # exact would be -0.5, -0.25
    [tensor(-0.5000), tensor(-0.1250)]
    """

    def __init__(
        self,
        problem: Problem,
        phi: Mapping[str, Tensor],
        inner: Inner,
        *,
        length: int,
        carry: int | None = None,
        steps: int,
        **arguments: Any,
    ) -> None:
        carry = length if carry is None else carry
        check_window(problem, length, carry, steps)
        self._loop = InnerLoop(problem, phi, inner, {**arguments, "steps": steps})
        self._length, self._carry, self._steps = length, carry, steps
        self._start = Reached()

    @property
    def draws_last(self) -> int:
        """Outer steps that one inner loop takes."""
        return (self._steps - self._length) // self._carry + 1

    def parameters(self) -> Mapping[str, Tensor]:
        """phi."""
        return self._loop.phi

    def __call__(self, drawn: Any) -> MetaGradient:
        """The next window of the inner loop."""
        start, device = self._start, next(iter(self._loop.phi.values())).device
        call = self._loop.call(self._loop.phi, drawn)
        after = None
        if self._carry < self._length:
            with leaving(device):  # the window's own steps draw the same
                after = walked(replace(window(call, start, self._carry), val_weights=None))
        result, form, tied = swept(window(call, start, self._length))
        label = f"Windows(length={self._length}, carry={self._carry}): L at step {start.step + self._length}"
        label += f", steps before {start.step} held constant" if start.step else ""
        notes = [result.approximation] * bool(result.approximation) + [label] * (self._length < self._steps)
        result = self._loop.finish(replace(result, approximation=" & ".join(notes)), tied, "a window")
        step = start.step + self._carry
        trajectory, _ = after or (result, form)
        self._start = reached(trajectory, form.trained, step) if step + self._length <= self._steps else Reached()
        return result

    def state_dict(self) -> dict[str, Any]:
        """The point that the inner loop has reached."""
        return dict(self._start._asdict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._start = Reached(**state)

    def __repr__(self) -> str:
        return f"Windows({self._loop!r}, length={self._length}, carry={self._carry})"
