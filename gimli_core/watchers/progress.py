"""How far a run is: a consumer of its events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from gimli_core.record import Event

__all__ = ["Progress"]


class Progress:
    """Prints steps advanced, replayed and swept, and the time left of the unroll, then of the sweep.

    Pass it as `watch=`, or give `progress=True`, which makes one.

    Args:
        steps: J.
        show: what takes a line of text; by default it is drawn over the last one on standard error.
        seconds: between two lines.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem, lines = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5)), []
    >>> progress = gimli.Progress(2, show=lines.append)
    >>> _ = gimli.meta_gradient(problem, {"w": torch.zeros(1)}, [torch.ones(1)] * 2, torch.ones(1), watch=progress)
    >>> lines
    ['advanced 2/2, replayed 0, swept 2/2']
    """

    def __init__(self, steps: int, show: Callable[[str], None] | None = None, seconds: float = 1.0) -> None:
        self.steps, self.seconds = steps, seconds
        self.advanced = self.replayed = self.swept = 0
        self._show = show or self._draw
        self._shown = time.monotonic()
        self._forwards: tuple[float, int] | None = None  # when the unroll began, and at which step
        self._backwards: tuple[float, int] | None = None  # when the sweep began, and how much was swept

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.line <= 6 and self._forwards is None:
            self._forwards = now, event.j  # a resumed run does not begin at 0
        if event.line == 6:
            self.replayed += event.replay
            self.advanced = self.advanced if event.replay else event.j + 1
        elif event.line >= 9 and self._backwards is None:
            self.advanced = self.steps
            self._backwards = now, self.steps - event.j
        swept = event.line == 14 and event.row == event.rows - 1  # of the last outer loss
        if swept:
            self.swept = self.steps - event.j
        if now - self._shown >= self.seconds or (swept and event.j == 0):
            self._shown = now
            self._show(str(self))

    def _draw(self, line: str) -> None:
        print(f"{line:<78}", end="\n" if self.swept == self.steps else "\r", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        text = f"advanced {self.advanced}/{self.steps}, replayed {self.replayed}, swept {self.swept}/{self.steps}"
        done, (start, first) = self.swept, self._backwards or (0.0, 0)
        what = ""
        if self._backwards is None:
            done, (start, first), what = self.advanced, self._forwards or (0.0, 0), " of the unroll"
        if first < done < self.steps:
            left = (time.monotonic() - start) / (done - first) * (self.steps - done)
            text += f", about {left:.0f} s left{what}"
        return text
