"""Line 16 and the loop around it: draw, estimate the meta-gradient, step, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from gimli_core.errors import ArgumentError, explain
from gimli_core.outer_loop.estimator import Estimator

__all__ = ["OuterLoop"]


class OuterLoop:
    """Learns an estimator's phi with an optimizer of torch (line 16).

    Args:
        estimator: a `gimli.Estimator`, such as `gimli.Unrolled(…)`.
        tasks: what an outer step works on: a function of the step's number, or a sequence that is gone through again
            and again.
        meta_optimizer: a `torch.optim.Optimizer` of phi's tensors.
        steps: how many outer steps.
    """

    def __init__(
        self,
        estimator: Estimator,
        tasks: Sequence[Any] | Callable[[int], Any],
        meta_optimizer: torch.optim.Optimizer,
        *,
        steps: int,
    ) -> None:
        if not callable(tasks) and not (isinstance(tasks, Sequence) and len(tasks)):
            expected = "a function of the outer step, or a sequence that is not empty"
            do = (
                "What is drawn must be the same when a step is run again: give an iterator's list, or draw by the step."
            )
            raise ArgumentError(explain("tasks", expected, type(tasks).__name__, do))
        self.estimator, self.tasks, self.meta_optimizer, self.steps = estimator, tasks, meta_optimizer, steps
        self.step = 0  # outer steps that are done

    def run(self) -> list[dict[str, Any]]:
        """Take the outer steps that are left; a record of each."""
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.step < self.steps:
            yield self._take_step()

    def _take_step(self) -> dict[str, Any]:
        drawn = self._draw(self.step)
        self.meta_optimizer.zero_grad()
        result = self.estimator(drawn)
        self.meta_optimizer.step()
        self.step += 1
        return {"step": self.step, "val_loss": float(torch.as_tensor(result.val_loss).detach())}

    def _draw(self, step: int) -> Any:
        return self.tasks(step) if callable(self.tasks) else self.tasks[step % len(self.tasks)]
