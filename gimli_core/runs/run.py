"""What a run is to whoever asks for one: two halves of Algorithm 1, each a stream of events, and then a result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Protocol

from torch import Tensor

from gimli_core.arguments.form import Form
from gimli_core.record import Event
from gimli_core.results import MetaGradient, Trajectory

__all__ = ["Events", "Run", "drain"]

Events = Generator[Event, None, None]


class Run(Protocol):
    """Lines 4-9, then lines 10-16."""

    @property
    def form(self) -> Form: ...
    @property
    def steps(self) -> int: ...  # inner steps in all
    def forward(self) -> Events: ...
    def backward(self, along: Tensor | None = None) -> Events: ...  # see `Wants.weighed`
    @property
    def val_loss(self) -> Tensor: ...
    def trajectory(self) -> Trajectory: ...
    def result(self) -> MetaGradient: ...


def drain(events: Events, *watching: Callable[[Event], None] | None) -> None:
    """Run to the end; each event is shown to those who watch, and then let go. What one of them raises is raised within
    the run too: it then lets go of what it has, and other ranks hear of it."""
    shown = [watch for watch in watching if watch is not None]
    if not shown:
        deque(events, maxlen=0)
        return
    for event in events:
        try:
            for watch in shown:
                watch(event)
        except Exception as error:
            del event
            events.throw(error)
            raise
        del event
