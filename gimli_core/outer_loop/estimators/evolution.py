"""Evolution strategies: dL/dphi from values of L alone, at perturbed phi. What PES and ES share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Tensors
from gimli_core.outer_loop.checks import check_number
from gimli_core.outer_loop.estimators.inner import Inner, InnerLoop, accumulate, walked
from gimli_core.outer_loop.estimators.particles import as_tasks
from gimli_core.outer_loop.estimators.window import Reached, check_window, reached, window
from gimli_core.outer_loop.randomness import NOISE, check_seed, generator_at
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient
from gimli_core.runs.outcome import estimated

__all__ = ["EvolutionStrategy"]


class EvolutionStrategy(ABC):
    """Pairs of inner loops at phi + e and phi - e that go on side by side, a window each outer step.

        A = 1/(2 N sigma^2) Σ_pairs x (L+ - L-)

    What x is, is for PES and ES to say, whose docstrings say the rest.
    """

    def __init__(
        self,
        problem: Problem,
        phi: Mapping[str, Tensor],
        inner: Inner,
        *,
        sigma: float | Mapping[str, float],
        pairs: int = 1,
        length: int | None = None,
        steps: int,
        chunk: int | None = None,
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        length = steps if length is None else length
        check_window(problem, length, length, steps)
        check_number("pairs", pairs, 1)
        if chunk is not None:
            check_number("chunk", chunk, 1)
        check_seed(seed)
        self._loop = InnerLoop(problem, phi, inner, {**arguments, "steps": steps})
        self._learned = {name: leaf for name, leaf in self._loop.phi.items() if leaf.requires_grad}
        self._sigma = _checked_sigma(sigma, self._learned)
        self._pairs, self._length, self._steps, self._chunk, self._seed = pairs, length, steps, chunk, seed
        self._start, self._windows = Reached(), 0
        self._xi: Tensors | None = None

    @property
    def draws_last(self) -> int:
        """Outer steps that one inner loop takes."""
        return self._steps // self._length

    def parameters(self) -> Mapping[str, Tensor]:
        """phi."""
        return self._loop.phi

    def __call__(self, drawn: Any) -> MetaGradient:
        """The next window of all inner loops."""
        e = self._perturbations()
        signed = [(sign, i) for sign in (1, -1) for i in range(self._pairs)]
        calls = [self._loop.call(self._perturbed(e, sign, i), drawn) for sign, i in signed]
        trajectory, form = walked(window(as_tasks(calls, self._chunk), self._start, self._length))
        assert trajectory.task_val_losses is not None
        L = trajectory.task_val_losses.reshape(2, self._pairs, -1)
        difference = (L[0] - L[1]).sum(-1) if _sums(calls[0].tasks) else (L[0] - L[1]).mean(-1)
        xi = e if self._xi is None else {name: self._xi[name] + e[name] for name in e}
        A = {
            name: torch.tensordot(difference.to(x), x, dims=1) / (2 * self._pairs * self._sigma[name] ** 2)
            for name, x in self._weights(e, xi).items()
        }
        label = self._label()
        self._windows += 1
        step = self._start.step + self._length
        going_on = step < self._steps
        self._start = reached(trajectory, form.trained, step) if going_on else Reached()
        self._xi = xi if going_on else None
        accumulate(self._loop.phi, A)
        return estimated(trajectory, label, A=A)

    @abstractmethod
    def _weights(self, e: Tensors, xi: Tensors) -> Tensors:
        """x, from what was drawn for this window and for all since the inner loops began."""

    @abstractmethod
    def _left_out(self, step: int) -> str:
        """What the estimate leaves out in a window that begins at this step; "" if nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The points that the inner loops have reached, and what was drawn."""
        return {"start": dict(self._start._asdict()), "windows": self._windows, "xi": self._xi}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._start, self._windows, self._xi = Reached(**state["start"]), state["windows"], state["xi"]

    def _perturbations(self) -> Tensors:
        """e of this window, `[N, …]` for each tensor of phi: by the seed and the window alone."""
        generator = generator_at(self._seed, NOISE, self._windows)
        return {
            name: self._sigma[name]
            * torch.randn(self._pairs, *leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
            for name, leaf in self._learned.items()
        }

    def _perturbed(self, e: Tensors, sign: int, i: int) -> Tensors:
        return {name: leaf.detach() + sign * e[name][i] if name in e else leaf for name, leaf in self._loop.phi.items()}

    def _label(self) -> str:
        label = f"{type(self).__name__}(pairs={self._pairs}): L averaged over perturbations of phi, with noise"
        return label + self._left_out(self._start.step)

    def __repr__(self) -> str:
        options = f"sigma={self._sigma}, pairs={self._pairs}, length={self._length}, seed={self._seed}"
        return f"{type(self).__name__}({self._loop!r}, {options})"


def _sums(tasks: Any) -> bool:
    return getattr(tasks, "reduce", "mean") == "sum"


def _checked_sigma(sigma: Any, learned: Mapping[str, Tensor]) -> dict[str, float]:
    of_each = sigma if isinstance(sigma, Mapping) else dict.fromkeys(learned, sigma)
    if set(of_each) != set(learned):
        expected, do = f"a number, or one for each of {list(learned)}", "Name them all."
        raise unexpected("sigma", expected, f"{list(of_each)}", do)
    for value in of_each.values():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            do = "For example a tenth of phi's scale."
            raise unexpected("sigma", "a number above 0", repr(value), do)
    return {name: float(of_each[name]) for name in learned}
