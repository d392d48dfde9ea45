"""A meta-batch: T tasks in one problem. What a user says of them, and how arguments carry a leading T.

A task is an inner loop of its own. With tasks t = 1 … T, each with its batches and, where they are marked
`per_task`, its own theta_0, phi or state,

    L = Σ_t L_val(theta_J^t)  or its mean,

so the engine runs on tensors `[T, …]` as on any others (over_tasks.py): a loss then returns T values, whose sum has
each task's gradient in its own slice, and what the tasks share gets the sum over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.errors import listing, unexpected
from gimli_core.meta_parameters.marks import PerTask
from gimli_core.notation import COUNTS, State, Tensors
from gimli_core.trees import mapped

__all__ = [
    "Tasks",
    "by_task",
    "check_tasks",
    "checked_per_task",
    "expanded",
    "of_tasks",
    "split_marked",
    "stacked_state",
    "summed",
]

REDUCTIONS = ("mean", "sum")
MOST = 2**31 - 1  # tasks: their numbers are counted in lists, and their tensors have them as a dimension


@dataclass(frozen=True)
class Tasks:
    """How many tasks a meta-batch has, and what is made of their losses: `tasks=gimli.Tasks(T, …)`.

    Args:
        count: T; `tasks=T` alone means `Tasks(T)`.
        reduce: "mean" or "sum" over the tasks: of the losses, and so of all gradients.
        chunk: tasks that are run at a time, to bound memory; by default all.

    Raises:
        ArgumentError: numbers below 1, another word.

    Cost: that of T inner loops, in the memory of `chunk` of them.

    >>> import gimli_core as gimli
    >>> gimli.Tasks(8, reduce="sum", chunk=4)
    Tasks(count=8, reduce='sum', chunk=4)
    """

    count: int
    reduce: str = "mean"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            do = "The mean over the tasks is usual."
            raise unexpected("Tasks(reduce=…)", listing(REDUCTIONS), repr(self.reduce), do)
        _check_count("Tasks(count=…)", self.count, "tasks")
        if self.chunk is not None:
            _check_count("Tasks(chunk=…)", self.chunk, "tasks that are run at a time")

    @property
    def parts(self) -> list[tuple[int, int]]:
        """[first, last) of each chunk."""
        size = self.chunk or self.count
        return [(first, min(first + size, self.count)) for first in range(0, self.count, size)]


def _check_count(argument: str, value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= MOST:
        expected = f"a whole number of {what} below 2**31, at least 1"
        raise unexpected(argument, expected, repr(value), "Leave it out for one inner loop, or for all.")


def check_tasks(tasks: Any) -> Tasks | None:
    """`tasks=` as an object. Raises ArgumentError."""
    if tasks is None or isinstance(tasks, Tasks):
        return tasks
    if isinstance(tasks, bool) or not isinstance(tasks, Integral) or not 1 <= int(tasks) <= MOST:
        expected = "a whole number T >= 1 and below 2**31, gimli.Tasks(T, …) or None"
        raise unexpected("tasks", expected, repr(tasks), "Leave it out for one inner loop.")
    return Tasks(int(tasks))


def by_task(leaf: Any, count: int, name: str) -> bool:
    """Whether a leaf of a batch has a slice for each task: every tensor must. Raises ArgumentError."""
    if isinstance(leaf, Tensor) and leaf.shape[:1] != (count,):
        expected = f"tensors with a leading dimension of {count} tasks"
        do = "Stack the tasks' batches: torch.stack([...])."
        raise unexpected(f"the batch of {name}", expected, f"one of shape {list(leaf.shape)}", do)
    return isinstance(leaf, Tensor)


def split_marked(value: Any) -> tuple[bool, Any]:
    """(whether it was marked `per_task`, the value)."""
    return (True, value.value) if isinstance(value, PerTask) else (False, value)


def checked_per_task(argument: str, value: Any, count: int | None) -> Any:
    """`value`, marked `per_task`, if every tensor in it has a leading dimension of T. Raises ArgumentError."""
    if count is None:
        expected, do = "tasks=T beside what is marked per_task", "Say how many tasks there are."
        raise unexpected("tasks", expected, "None", do)
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (count,):
            actual = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            expected = f"a tensor with a leading dimension of {count} tasks, as it is marked per_task"
            raise unexpected(f"{argument}{pytree.keystr(path)}", expected, actual, "Stack one tensor a task.")
    return value


def of_tasks(batch: Any, count: int, name: str, first: int, last: int) -> Any:
    """The tasks [first, last) of a batch of T."""
    return pytree.tree_map(lambda leaf: leaf[first:last] if by_task(leaf, count, name) else leaf, batch)


def expanded(tensors: Tensors, count: int) -> Tensors:
    """Every tensor once a task, without a copy."""
    return {k: v.expand(count, *v.shape) for k, v in tensors.items()}


def stacked_state(state: State, count: int) -> State:
    """A state of one task as that of all; the counts of steps stay one number."""
    return {slot: of_slot if slot in COUNTS else expanded(of_slot, count) for slot, of_slot in state.items()}


def summed(tree: Any) -> Any:
    """Nested dicts of tensors `[T, …]`, summed over the tasks."""
    return mapped(lambda v: torch.sum(v, 0), tree)
