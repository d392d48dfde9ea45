"""A run whose form turns out not to fit while it goes forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gimli_core.environment import Environment
from gimli_core.runs.run import Events, Run

__all__ = ["AgainIfNeeded"]


class AgainIfNeeded:
    """A run that turns out to need another form, and is then made again. Found out before anything is swept.

    Of tensors in one vector, one may be left alone by a step; tasks that run at once may have to run apart.

    Args:
        run: as it is tried first.
        again: for each of what it raises where it does not fit, what makes the run that does, from what was raised.
        environment: which that one finds as the first did.
    """

    def __init__(
        self, run: Run, again: Mapping[type[Exception], Callable[[Exception], Run]], environment: Environment
    ) -> None:
        self._run, self._again, self._environment = run, again, environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def forward(self) -> Events:
        found = self._environment.capture()
        try:
            yield from self._run.forward()
        except tuple(self._again) as error:
            self._environment.restore(found)
            self._run = self._again[type(error)](error)
            yield from self._run.forward()

    def backward(self, along: Tensor | None = None) -> Events:
        yield from self._run.backward(along)  # asked for when it is gone through: `forward` may change the run
