"""Tasks by their place: outer step s, task t. Each is the same however many others are drawn."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gimli_core.errors import unexpected
from gimli_core.outer_loop.randomness import TASK, check_seed, generator_at

__all__ = ["TaskSampler"]


class TaskSampler:
    """T tasks for an outer step, each drawn with random numbers of its own.

    Task t of step s is drawn from a generator that is seeded by (seed, s, t). So it is the same whatever was drawn
    before it, in another order, after a kill, and in a run with more tasks or of fewer steps.

    Args:
        draw: `(generator) -> task`: nested dicts, tuples and lists of tensors, of one shape for all tasks.
        tasks: T; the tensors of T tasks are stacked, `[T, …]`, as `gimli.unroll(…, tasks=T)` takes them. None draws one
            and does not stack it.
        seed: a whole number.

    Raises:
        ArgumentError: arguments of another kind; tasks that cannot be stacked.

    >>> import torch, gimli_core as gimli
    >>> def draw(generator):
    ...     return {"support": torch.rand(5, generator=generator), "query": torch.rand(3, generator=generator)}
    >>> two, three = gimli.TaskSampler(draw, tasks=2), gimli.TaskSampler(draw, tasks=3)
    >>> two(7)["support"].shape, bool((two(7)["support"] == three(7)["support"][:2]).all())
    (torch.Size([2, 5]), True)
    """

    def __init__(self, draw: Callable[[torch.Generator], Any], tasks: int | None = None, *, seed: int = 0) -> None:
        if not callable(draw):
            do = "For example lambda generator: torch.randn(5, generator=generator)."
            raise unexpected("draw", "a function (generator) -> task", type(draw).__name__, do)
        if tasks is not None and (isinstance(tasks, bool) or not isinstance(tasks, Integral) or tasks < 1):
            raise unexpected("tasks", "a whole number, at least 1, or None", repr(tasks), "None draws one.")
        check_seed(seed)
        self.draw, self.tasks, self.seed = draw, tasks, seed

    def __call__(self, step: int) -> Any:
        """The tasks of an outer step."""
        if self.tasks is None:
            return self.task(step, 0)
        drawn = [self.task(step, t) for t in range(self.tasks)]
        try:
            return pytree.tree_map(lambda *leaves: torch.stack(leaves), *drawn)
        except (RuntimeError, TypeError, ValueError) as error:
            do = "Draw as many rows for each, or draw with tasks=None and collate them in `draw`."
            raise unexpected("draw", "tensors of one shape for all tasks", str(error), do) from error

    def task(self, step: int, t: int) -> Any:
        """Task t of an outer step, alone."""
        return self.draw(generator_at(self.seed, TASK, step, t))
