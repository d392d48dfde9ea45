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

    Of tensors in one vector, one may be left alone by a step; tasks that run at once may have to run apart; batches may
    come in other parts than in the call that this one takes over from.

    Args:
        run: as it is tried first.
        ways: what it raises where it does not fit, and what makes the run that does, from what was raised.
        environment: which that one finds as the first did.
    """

    def __init__(
        self, run: Run, ways: Mapping[type[Exception], Callable[[Exception], Run]], environment: Environment
    ) -> None:
        self._run, self._ways, self._environment = run, ways, environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def forward(self) -> Events:
        before = self._environment.capture()
        try:
            yield from self._run.forward()
        except tuple(self._ways) as error:
            self._environment.restore(before)
            self._run = next(again for why, again in self._ways.items() if isinstance(error, why))(error)
            yield from self._run.forward()

    def backward(self, along: Tensor | None = None) -> Events:
        yield from self._run.backward(along)  # asked for when it is gone through: `forward` may change the run
