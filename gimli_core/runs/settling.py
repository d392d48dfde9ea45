"""How many steps an inner loop takes that ends when something holds, found by running it forwards.

The run itself is then one of J steps, as any other: every schedule, replay and compiled step serves it. J is a
constant of the differentiation, as it is for whoever writes the number down. Tasks that end early rest until the last
one ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.arguments.until import Until, norm
from gimli_core.environment import Environment
from gimli_core.errors import NotReachedError
from gimli_core.meta_parameters.marks import PerTask
from gimli_core.optimizers.wrappers.halted import Halted
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.run import Run

__all__ = ["Ahead", "Rested", "settled"]


class Ahead(Run, Protocol):
    """A run that is eager and by schedule."""

    @property
    def environment(self) -> Environment: ...


def settled(call: Call, until: Until, forwards: Callable[[Call], Ahead]) -> tuple[Call, Tensor | None]:
    """(the call of so many steps, how many each task takes, [T], if there are tasks).

    Args:
        forwards: makes a run that is told of every line and keeps nothing.

    Raises:
        NotReachedError: nothing of `until` holds in any step of some inner loop.

    Cost: 3F a step that is run, in the memory of one, besides that of the run itself.
    """
    call = replace(call, until=None)
    run = forwards(call)
    taken = _steps_taken(run, until)
    if taken.ndim == 0:
        return replace(call, steps=int(taken)), None
    longest = int(taken.max())
    if bool((taken == longest).all()):
        return replace(call, steps=longest), taken
    problem = call.problem
    rule = Halted(problem.optimizer, stop=PerTask(taken.double()))
    halted = Problem(problem.train_loss, problem.val_loss, rule, problem.modules)
    return replace(call, steps=longest, problem=halted, compile=False, check=False), taken


def _steps_taken(run: Ahead, until: Until) -> Tensor:
    """J, of shape [] or [T]."""
    J, environment = run.form.steps, run.environment
    taken: Tensor | None = None
    before, loss, size = None, None, None
    with environment.trial(), closing(run.forward()) as events:
        for event in events:
            if event.line != 5:
                continue
            loss, G, theta = event.values["loss"], event.values["G"], event.inputs["theta"]
            reached = until.holds(event.j, loss, before, theta, G)
            taken = torch.full_like(reached, J, dtype=torch.int64) if taken is None else taken
            taken = torch.where(reached & (taken == J), event.j, taken)
            before, size = loss, norm(G, loss.ndim)
            if bool((taken < J).all()):
                break
    if taken is None:
        return torch.tensor(J)
    if until.strict and not bool((taken < J).all()):
        raise NotReachedError(_message(until, J, taken, loss, size))
    return taken


def _message(until: Until, J: int, taken: Tensor, loss: Any, size: Any) -> str:
    late = taken == J
    which = "" if taken.ndim == 0 else f" in {int(late.sum())} of {len(taken)} tasks"
    reached = f"‖G‖ = {float(size[late].max()):.3g} and ℓ = {float(loss[late].max()):.6g} at step {J - 1}"
    return (
        f"until: expected to be met within {J} steps; got {reached}{which} for {until}. "
        "Give more steps=, loosen it, or say Until(strict=False) to go on with all of the steps."
    )


class Rested:
    """A run of tasks that end at steps of their own: what is told of a task after its end is nan."""

    def __init__(self, run: Run, taken: Tensor) -> None:
        self._run, self._taken = run, taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def trajectory(self) -> Trajectory:
        return self._told(self._run.trajectory())

    def result(self) -> MetaGradient:
        """The result, with the steps of each task."""
        told = self._told(self._run.result())
        assert isinstance(told, MetaGradient)
        return told

    def _told(self, result: Trajectory) -> Trajectory:
        j = torch.arange(len(result.train_losses), device=result.train_losses.device)
        losses = torch.where(j[:, None] < self._taken, result.train_losses, float("nan"))
        return replace(result, train_losses=losses, task_steps=self._taken)
