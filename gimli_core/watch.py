"""Consumers of a run's events: how far it is, and how the norm of B_j goes along the sweep."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import torch

from gimli_core.record import Event

__all__ = ["AdjointNorms", "Progress"]


class AdjointNorms:
    """||B_j|| along the sweep; warns once when it explodes or vanishes, with the step.

    Pass it as `watch=`; afterwards `norms` is `{j: ||B_j||}`.

    Args:
        ratio: how far ||B_j|| may go above ||B_J||, or below it, before the warning.

    Cost: one pass over B a step.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem, norms = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5)), gimli.AdjointNorms()
    >>> _ = gimli.meta_gradient(problem, {"w": torch.zeros(1)}, [torch.ones(1)] * 2, torch.ones(1), watch=norms)
    >>> norms.norms
    {2: 0.25, 1: 0.125, 0: 0.0625}
    """

    def __init__(self, ratio: float = 1e6) -> None:
        self.ratio = ratio
        self.norms: dict[int, float] = {}
        self._warned = False

    def __call__(self, event: Event) -> None:
        if event.line not in (9, 14):
            return
        norms = torch._foreach_norm([b.detach() for b in event.values["B"].values()])
        norm = torch.stack([n.double() for n in norms]).norm().item()
        if event.line == 9:
            self.norms, self._warned = {}, False
        self.norms[event.j] = norm
        first = next(iter(self.norms.values()))
        if self._warned or first == 0 or first / self.ratio <= norm <= first * self.ratio:
            return
        self._warned = True
        what = "vanishes" if norm < first else "explodes"
        warnings.warn(
            f"||B_j|| {what}: {norm:.3g} at j = {event.j}, against {first:.3g} at J = {next(iter(self.norms))}. "
            "Earlier steps count for "
            + ("almost nothing; fewer may do." if norm < first else "too much; lower the learning rate or the steps."),
            RuntimeWarning,
            stacklevel=2,
        )


class Progress:
    """Prints steps advanced, replayed and swept, and the time left.

    Pass it as `watch=`.

    Args:
        steps: J.
        show: what takes a line of text; by default it is drawn over the last one on standard error, by rich where
            that is installed.
        seconds: between two lines.
    """

    def __init__(self, steps: int, show: Callable[[str], None] | None = None, seconds: float = 1.0) -> None:
        self.steps, self.seconds = steps, seconds
        self.advanced = self.replayed = self.swept = 0
        self._write = _writer() if show is None else None
        self._show = show or self._draw
        self._start = self._shown = time.monotonic()
        self._sweeping = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.line == 6:
            self.replayed, self.advanced = self.replayed + event.replay, self.advanced + (not event.replay)
        elif event.line == 9:
            self._sweeping = now
        elif event.line == 14:
            self.swept += 1
        if now - self._shown >= self.seconds or self.swept == self.steps:
            self._shown = now
            self._show(str(self))

    def _draw(self, line: str) -> None:
        assert self._write is not None
        self._write(f"{line:<78}", "\n" if self.swept == self.steps else "\r")

    def __str__(self) -> str:
        text = f"advanced {self.advanced}/{self.steps}, replayed {self.replayed}, swept {self.swept}/{self.steps}"
        if 0 < self.swept < self.steps:
            left = (time.monotonic() - self._sweeping) / self.swept * (self.steps - self.swept)
            text += f", about {left:.0f} s left"
        return text


def _writer() -> Callable[[str, str], None]:
    """What writes a text and an end of line to standard error."""
    try:
        from rich.console import Console
    except ImportError:
        return lambda text, end: print(text, end=end, file=sys.stderr, flush=True)
    console = Console(stderr=True, soft_wrap=True)
    return lambda text, end: console.print(text, end=end)
