"""Runs on one vector of all tensors, made again with the tensors apart where a loss does not use one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.environment import Environment
from gimli_core.runs.run import Events, Run
from gimli_core.transforms.one_vector import LeftAlone

__all__ = ["ApartIfNeeded", "apart_if_needed", "keep_apart"]

Made = TypeVar("Made")


def apart_if_needed(call: Call, make: Callable[[], Made]) -> Made:
    """What `make` makes of a call; again, with tensors by name, where a loss does not use one of the one vector."""
    try:
        return make()
    except LeftAlone:
        keep_apart(call)
        return make()


def keep_apart(call: Call) -> None:
    """From now on the tensors of this problem stay apart."""
    call.problem.memo.by_name = True
    call.problem.memo.recalled.clear()


class ApartIfNeeded:
    """A run on one vector of all tensors, until a loss does not use one of them. Found out before anything is swept."""

    def __init__(self, call: Call, run: Run, environment: Environment, make: Callable[[], Run]) -> None:
        self._call, self._run, self._environment, self._make = call, run, environment, make

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def forward(self) -> Events:
        snapshot = self._environment.capture()
        try:
            yield from self._run.forward()
        except LeftAlone:
            self._environment.restore(snapshot)
            keep_apart(self._call)
            self._run = self._make()
            yield from self._run.forward()

    def backward(self, along: Tensor | None = None) -> Events:
        return self._run.backward(along)
