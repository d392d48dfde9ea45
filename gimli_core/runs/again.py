"""A run whose form turns out not to fit while it goes forwards."""

from __future__ import annotations

from collections.abc import Callable
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
        why: what it raises where it does not fit.
        again: makes the run that does, from what was raised.
        environment: which that one finds as the first did.
    """

    def __init__(
        self, run: Run, why: type[Exception], again: Callable[[Exception], Run], environment: Environment
    ) -> None:
        self._run, self._why, self._again, self._environment = run, why, again, environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def forward(self) -> Events:
        found = self._environment.capture()
        try:
            yield from self._run.forward()
        except self._why as error:
            self._environment.restore(found)
            self._run = self._again(error)
            yield from self._run.forward()

    def backward(self, along: Tensor | None = None) -> Events:
        yield from self._run.backward(along)  # asked for when it is gone through: `forward` may change the run
