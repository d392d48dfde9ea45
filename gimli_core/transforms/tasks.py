"""A meta-batch: T tasks in one problem, vectorised over a leading dimension.

A task is an inner loop of its own. With tasks t = 1 … T, each with its batches and, where they are marked
`per_task`, its own theta_0, phi or state,

    L = Σ_t L_val(theta_J^t)  or its mean,

so the engine runs on tensors `[T, …]` as on any others: a loss then returns T values, whose sum has each task's
gradient in its own slice, and what the tasks share gets the sum over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from gimli_core.errors import ArgumentError, explain, first_line, listing, notice
from gimli_core.meta_parameters.marks import PerTask
from gimli_core.notation import Loss, State, Tensors, counts, slots
from gimli_core.problem import Problem
from gimli_core.transforms.one_vector import Spread

__all__ = [
    "LossOverTasks",
    "Tasks",
    "check_tasks",
    "expanded",
    "of_tasks",
    "over_tasks",
    "own",
    "split_marked",
    "stacked_state",
    "summed",
]

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Tasks:
    """How many tasks there are, and what each has of its own."""

    count: int
    scale: float  # what the sum of their losses is multiplied by
    theta: bool  # whether theta_0 was given per task
    state: bool  # whether state_0 was
    phi_loss: frozenset[str]  # entries of phi_loss that were

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a loss: one value a task."""
        return (self.count,)


class LossOverTasks:
    """`loss` for T tasks: from theta `[T, …]`, batch `[T, …]` to `[T]` values.

    Vectorised by `vmap`; where that cannot be (a branch on values, autograd inside the loss), one task after the
    other, to the same result.

    Args:
        loss: of one task.
        name: in messages.
        count: T.
        shared: names in theta that all tasks share (held constant).
        phi_by_task: names in phi_loss that they do not.
        modules: whose buffers the loss may change; with tasks it must not.

    Raises:
        ArgumentError: at a call: a batch without the leading dimension, a loss that is not one number a task, or that
            changes a buffer.
    """

    def __init__(
        self, loss: Loss, name: str, count: int, shared: frozenset[str], phi_by_task: frozenset[str], modules: Any
    ) -> None:
        self.loss, self.name, self.shape = loss, name, (count,)
        self._shared, self._phi_by_task = shared, phi_by_task
        self._buffers = [buffer for module in modules for buffer in module.buffers()]
        self._one_by_one = False

    def vectorised(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Tensor:
        """The losses of all tasks by vmap; raises what vmap raises."""
        dims = tuple(_said_once(own) for own in self._which(theta, phi_loss, batch))
        of_all: Tensor = vmap(self._of_one, in_dims=dims, randomness="different")(theta, phi_loss, batch)
        return of_all

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Tensor:
        if not self._one_by_one:
            generator = torch.get_rng_state()
            try:
                return self.vectorised(theta, phi_loss, batch)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if isinstance(error, ArgumentError):
                    raise
                torch.set_rng_state(generator)
                self._in_turn(theta, phi_loss, batch)  # where this fails too, the loss itself is at fault
                self._one_by_one = True
                torch.set_rng_state(generator)
                notice(f"{self.name} runs one task after the other, since vmap cannot: {first_line(error)}")
        return self._in_turn(theta, phi_loss, batch)

    def _which(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        """What of the arguments each task has of its own."""
        own_theta = {k: k not in self._shared for k in theta}
        return (
            own_theta,
            {k: k in self._phi_by_task for k in phi_loss},
            pytree.tree_map(lambda leaf: by_task(leaf, self.shape[0], self.name), batch),
        )

    def _in_turn(self, *arguments: Any) -> Tensor:
        """The losses of all tasks, without vmap."""
        before = [(buffer, buffer.clone()) for buffer in self._buffers]
        own = self._which(*arguments)

        def of(t: int) -> Any:
            return pytree.tree_map(lambda mine, leaf: leaf[t] if mine else leaf, own, arguments)

        losses = torch.stack([self._of_one(*of(t)) for t in range(self.shape[0])])
        if any(not torch.equal(buffer, old) for buffer, old in before):
            for buffer, old in before:
                buffer.data.copy_(old)
            expected = "a loss that changes no buffer, since each task would need buffers of its own"
            do = "Normalise by batch statistics alone: BatchNorm(track_running_stats=False), or eval() before the call."
            raise ArgumentError(explain(self.name, expected, "one that changes running statistics", do))
        return losses

    def _of_one(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Tensor:
        loss = self.loss(theta, phi_loss, batch)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            came = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentError(explain(self.name, "to return a scalar for one task", came, "Reduce it with .mean()."))
        return loss


def _said_once(own: Any) -> Any:
    """The dimension for `vmap` of a tree of booleans: 0 or None for all of it, which it reads faster, or a tree."""
    leaves = pytree.tree_leaves(own)
    if all(leaves) or not any(leaves):
        return 0 if leaves and leaves[0] else None
    return pytree.tree_map(lambda mine: 0 if mine else None, own)


def by_task(leaf: Any, count: int, name: str) -> bool:
    """Whether a leaf of a batch has a slice for each task: every tensor must. Raises ArgumentError."""
    if isinstance(leaf, Tensor) and leaf.shape[:1] != (count,):
        raise ArgumentError(
            explain(
                f"the batch of {name}",
                f"tensors with a leading dimension of {count} tasks",
                f"one of shape {list(leaf.shape)}",
                "Stack the tasks' batches: torch.stack([...]).",
            )
        )
    return isinstance(leaf, Tensor)


def over_tasks(problem: Problem, tasks: Tasks, shared: frozenset[str], modules: Any) -> Problem:
    """The problem of all tasks, made once: losses of `[T]` values. Its optimizer is left to the caller."""
    known: dict[Any, Problem] = problem.made.setdefault("over tasks", {})
    key = (tasks.count, shared, tasks.phi_loss)
    if key not in known:
        losses = {
            name: LossOverTasks(getattr(problem, name), name, tasks.count, shared, tasks.phi_loss, modules)
            for name in ("train_loss", "val_loss")
        }
        known[key] = Problem(**losses, optimizer=problem.optimizer, modules=modules)
    return known[key]


def split_marked(value: Any) -> tuple[bool, Any]:
    """(whether it was marked `per_task`, the value)."""
    return (True, value.value) if isinstance(value, PerTask) else (False, value)


def check_tasks(tasks: Any, reduce: Any) -> int | None:
    """T, if there are tasks. Raises ArgumentError."""
    if reduce not in REDUCTIONS:
        raise ArgumentError(explain("reduce", listing(REDUCTIONS), repr(reduce), "The mean over the tasks is usual."))
    if tasks is not None and (isinstance(tasks, bool) or not isinstance(tasks, int) or tasks < 1):
        raise ArgumentError(
            explain("tasks", "a whole number T >= 1, or None", repr(tasks), "Leave it out for one inner loop.")
        )
    return tasks


def own(argument: str, value: Any, count: int | None) -> Any:
    """`value`, marked `per_task`, if every tensor in it has a leading dimension of T. Raises ArgumentError."""
    if count is None:
        expected, do = "tasks=T beside what is marked per_task", "Say how many tasks there are."
        raise ArgumentError(explain("tasks", expected, "None", do))
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (count,):
            came = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            expected = f"a tensor with a leading dimension of {count} tasks, as it is marked per_task"
            raise ArgumentError(explain(f"{argument}{pytree.keystr(path)}", expected, came, "Stack one tensor a task."))
    return value


def of_tasks(batch: Any, count: int, name: str, first: int, last: int) -> Any:
    """The tasks [first, last) of a batch of T."""
    return pytree.tree_map(lambda leaf: leaf[first:last] if by_task(leaf, count, name) else leaf, batch)


def expanded(tensors: Tensors, count: int) -> Tensors:
    """Every tensor once a task, without a copy."""
    return {k: v.expand(count, *v.shape) for k, v in tensors.items()}


def stacked_state(state: State, count: int) -> State:
    """A state of one task as that of all; what it counts is counted for all of them at once."""
    return {**counts(state), **{slot: expanded(held, count) for slot, held in slots(state).items()}}


def summed(tree: Any) -> Any:
    """Nested dicts of tensors `[T, …]`, summed over the tasks."""
    if isinstance(tree, Spread):
        return tree.summed()
    return {k: summed(v) for k, v in tree.items()} if isinstance(tree, Mapping) else torch.sum(tree, 0)
