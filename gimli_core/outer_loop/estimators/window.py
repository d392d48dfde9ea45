"""A part of an inner loop as a call of its own: some steps of it, from a point that an earlier part has reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from gimli_core.arguments.batches import check_batches, check_val_batch
from gimli_core.arguments.call import Call
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.marks import PerStep, PerTask, per_task, unmarked
from gimli_core.notation import State, Tensors
from gimli_core.outer_loop.checks import check_number
from gimli_core.problem import Problem
from gimli_core.results import Trajectory
from gimli_core.transforms.numbered import takes_j
from gimli_core.transforms.proximal import ProximalLoss
from gimli_core.transforms.tasks import check_tasks
from gimli_core.trees import KeyPath, mapped_at

__all__ = ["Reached", "check_window", "reached", "window"]


class Reached(NamedTuple):
    """theta and s after `step` steps of an inner loop; nothing at its start."""

    step: int = 0
    theta: Tensors | None = None  # what is trained
    state: State | None = None


def check_window(problem: Problem, length: Any, stride: Any, steps: Any) -> None:
    """Raise ArgumentError unless windows of `length` steps, each `stride` after the last, fill `steps` steps."""
    check_number("length", length, 1)
    check_number("steps", steps, 1)
    check_number("carry", stride, 1)
    if stride > length:
        do = "Steps between two windows would be in neither."
        raise unexpected("carry", f"at most the window's {length} steps", repr(stride), do)
    if length > steps or (steps - length) % stride:
        expected = f"a number of steps that windows of {length}, each {stride} after the last, end at"
        raise unexpected("steps", expected, repr(steps), f"For example {length + 3 * stride}.")
    if isinstance(problem, Problem) and isinstance(problem.train_loss, ProximalLoss) and length < steps:
        do = "Take one window of all steps, Unrolled, or Implicit: the centre has a share of B_0 in every window."
        raise unexpected("problem", "no proximal problem beside windows shorter than the loop", "one", do)
    if isinstance(problem, Problem) and length < steps:
        numbered = [f.__name__ for f in (problem.train_loss, problem.val_loss) if takes_j(f)]
        numbered += [type(problem.optimizer).__name__] * ("j" in problem.optimizer.seen())
        if numbered:
            actual = f"{numbered[0]}, for which j would count from the window's start"
            do = "Put the number into the batch."
            raise unexpected("problem", "losses and a rule that do not take j", actual, do)


def window(call: Call, start: Reached, length: int) -> Call:
    """The steps `start.step` … `start.step + length - 1` of a call, from the point that was reached."""
    batch, J = check_batches(call.train_batches, call.steps)
    val_batch = check_val_batch(call.val_batch, J)
    first = start.step
    part = replace(
        call,
        steps=length,
        train_batches=lambda j: batch(first + j),
        val_batch=lambda j: val_batch(first + j),
        phi_opt=_steps_of(call.phi_opt, first, length),
    )
    if start.theta is None or start.state is None:
        return part
    tasks = check_tasks(call.tasks)
    mark: Callable[[Any], Any] = per_task if tasks is not None else lambda value: value
    entries = unmarked(call.theta_0)
    theta_0 = {k: start.theta.get(k, unmarked(v)) for k, v in entries.items()}
    if tasks is not None and not isinstance(call.theta_0, PerTask):  # what is held constant, once a task
        shared = {k: v for k, v in entries.items() if k not in start.theta and not isinstance(v, PerTask)}
        theta_0 |= {k: _frozen(v, tasks.count) for k, v in shared.items()}
    return replace(part, theta_0=mark(theta_0), state_0=mark(start.state))


def reached(trajectory: Trajectory, trained: tuple[str, ...], step: int) -> Reached:
    """Where a window has ended."""
    return Reached(step, {k: trajectory.theta_J[k] for k in trained}, trajectory.state_J)


def _frozen(value: torch.Tensor, count: int) -> nn.Parameter:
    return nn.Parameter(value.detach().expand(count, *value.shape), requires_grad=False)


def _steps_of(value: Any, first: int, length: int) -> Any:
    """What of hyperparameters belongs to some steps: slices of what is marked `per_step`, all of the rest."""

    def of_steps(path: KeyPath, leaf: Any) -> Any:
        if PerStep not in path:
            return leaf
        return leaf[:, first : first + length] if PerTask in path else leaf[first : first + length]

    return mapped_at(of_steps, value)
