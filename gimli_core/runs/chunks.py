"""The tasks of a meta-batch in chunks, each run forwards and backwards before the next is begun."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from gimli_core.arguments.call import Call
from gimli_core.arguments.theta import theta_by_task
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.marks import PerTask
from gimli_core.notation import COUNTS
from gimli_core.record import Event
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.outcome import contracted
from gimli_core.runs.run import Events, Run
from gimli_core.runs.tasks_over_ranks import TasksOverRanks
from gimli_core.transforms.nested import nested
from gimli_core.transforms.tasks import check_tasks
from gimli_core.trees import KeyPath, bare, leaves, zipped_at

__all__ = ["Chunks"]


class Chunks:
    """The run of a call in parts.

    Args:
        call: all of it.
        parts: the calls of the chunks.
        run: makes the run of a part.
        over: the ranks that share the parts, if there are several.
    """

    def __init__(
        self, call: Call, parts: list[Call], run: Callable[[Call], Run], over: TasksOverRanks | None = None
    ) -> None:
        self._call, self._parts, self._run, self._over = call, parts, run, over
        self._mine = range(len(parts)) if over is None else over.share(len(parts))
        # A rank that has none makes one all the same: whatever is at fault is found on all ranks. Where a run keeps
        # what it reaches, this one does not: another rank may be about to run it, or it may be through.
        first = run(replace(parts[self._mine[0] if self._mine else 0], resume=None))
        self._first: Run | None = first if call.resume is None else None
        self.form = first.form
        self.steps = first.steps * len(self._mine)  # inner steps of all chunks that are run here
        self._result: MetaGradient | None = None

    def forward(self) -> Events:
        """All of Algorithm 1, chunk by chunk."""
        results = yield from (self._each() if self._over is None else self._over.everyones(self._each()))
        self._result = joined(results, self._call)

    def _each(self) -> Generator[Event, None, list[MetaGradient]]:
        """The results of the chunks that are run here."""
        results = []
        for i in self._mine:
            through = None if self._over is None else self._over.begin(i)
            if through is not None:
                results.append(through)
                continue
            run, self._first = self._first or self._run(self._parts[i]), None
            yield from chain(run.forward(), run.backward())
            results.append(run.result())
            del run
            if self._over is not None:
                self._over.end(i, results[-1])
        return results

    def backward(self, along: Tensor | None = None) -> Events:
        """Nothing: `forward` has been back already, for each outer loss."""
        if along is not None:
            self._result = contracted(self.result(), along)
        yield from ()

    @property
    def val_loss(self) -> Tensor:
        return self.result().val_loss

    def trajectory(self) -> Trajectory:
        return self.result()

    def result(self) -> MetaGradient:
        assert self._result is not None
        return self._result


def joined(results: list[MetaGradient], call: Call) -> MetaGradient:
    """The results of chunks as one: sums over what the tasks share, a dimension of all tasks for what they do not."""
    first = results[0]
    at = first.val_loss.ndim  # where the tasks stand in a gradient: behind the k outer losses, if there are several
    theta_per_task, _ = theta_by_task(call.theta_0, check_tasks(call.tasks).count)  # type: ignore[union-attr]
    state_per_task = call.state_0 is None or isinstance(call.state_0, PerTask)

    def every(name: str) -> list[Any]:
        return [getattr(result, name) for result in results]

    frozen = {k for k in first.theta_J if k not in theta_per_task and k not in first.B_0}
    return replace(
        first,
        val_loss=_join(every("val_loss"), False),
        theta_J={
            k: v if k in frozen else _join([t[k] for t in every("theta_J")], True) for k, v in first.theta_J.items()
        },
        state_J=_join_states(every("state_J"), True),
        buffers_J={k: _buffer([b[k] for b in every("buffers_J")]) for k in first.buffers_J},
        train_losses=_side_by_side(every("train_losses")),
        val_losses=_side_by_side(every("val_losses")),
        task_val_losses=_join(every("task_val_losses"), True),
        task_steps=None if first.task_steps is None else torch.cat(every("task_steps")),
        train_aux=_join_aux(every("train_aux")),
        val_aux=_join_aux(every("val_aux")),
        A_opt=_join(every("A_opt"), False, call.phi_opt, at),
        A_loss=_join(every("A_loss"), False, nested(call.phi_loss, call.nested), at),
        B_0={k: _join([B[k] for B in every("B_0")], k in theta_per_task, at=at) for k in first.B_0},
        S_0=_join(every("S_0"), state_per_task, at=at),
    )


def _side_by_side(losses: list[Tensor]) -> Tensor:
    """Losses `[steps, tasks]`, the tasks in a row; nan where a chunk took fewer steps than another."""
    J = max(len(of_chunk) for of_chunk in losses)
    return torch.cat([pad(of_chunk, (0, 0, 0, J - len(of_chunk)), value=float("nan")) for of_chunk in losses], 1)


def _join_aux(parts: list[Any]) -> Any:
    """Trees of tensors `[steps, tasks, …]`, the tasks in a row."""
    if parts[0] is not None and len({len(leaf) for part in parts for leaf in pytree.tree_leaves(part)}) > 1:
        do = "Run all tasks at a time, or leave aux out."
        raise unexpected("Tasks(chunk=…)", "chunks of as many steps, for their aux", "other numbers", do)
    return None if parts[0] is None else pytree.tree_map(lambda *leaves: torch.cat(leaves, 1), *parts)


def _buffer(parts: list[Tensor]) -> Tensor:
    """A buffer that no task has changed, or `[T, …]` of tasks that were run one at a time."""
    alike = all(torch.equal(part, parts[0]) for part in parts)
    return parts[0] if alike else torch.stack(parts)


def _join_states(states: list[dict[str, Any]], by_task: bool) -> dict[str, Any]:
    """States joined slot by slot; their counts are the same."""
    first = states[0]
    return {
        slot: of_slot if slot in COUNTS else _join([s[slot] for s in states], by_task)
        for slot, of_slot in first.items()
    }


def _join(parts: list[Any], by_task: bool, marked: Any = None, at: int = 0) -> Any:
    """The sum of the parts' tensors, or where each task has one (`by_task`, or `marked` per task) all of them in a row.

    `at` is the dimension of the tasks.
    """
    of_tasks = {bare(path) for path, _ in leaves(marked) if PerTask in path}

    def joined(path: KeyPath, *of_place: Tensor) -> Tensor:
        in_a_row = by_task or path in of_tasks
        return torch.cat(of_place, at) if in_a_row else torch.stack(of_place).sum(0)

    return zipped_at(joined, *parts)
