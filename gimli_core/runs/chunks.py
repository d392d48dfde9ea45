"""The tasks of a meta-batch in chunks, each run forwards and backwards before the next is begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from gimli_core.meta_parameters.marks import PerTask, unmarked
from gimli_core.notation import COUNTS
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.outcome import contracted
from gimli_core.runs.run import Events, Run
from gimli_core.transforms.nested import nested
from gimli_core.transforms.tasks import check_tasks

__all__ = ["Chunks"]


class Chunks:
    """The run of a call in parts.

    Args:
        call: all of it.
        parts: the calls of the chunks.
        run: makes the run of a part.
    """

    def __init__(self, call: Call, parts: list[Call], run: Callable[[Call], Run]) -> None:
        self._call, self._parts, self._run = call, parts, run
        self._first: Run | None = run(parts[0])
        self.form = self._first.form
        self.steps = self._first.steps * len(self._parts)  # inner steps of all chunks
        self._result: MetaGradient | None = None

    def forward(self) -> Events:
        """All of Algorithm 1, chunk by chunk."""
        results = []
        for part in self._parts:
            run, self._first = self._first or self._run(part), None
            yield from chain(run.forward(), run.backward())
            results.append(run.result())
            del run
        self._result = joined(results, self._call)

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
    own_theta, _ = theta_by_task(call.theta_0, check_tasks(call.tasks).count)  # type: ignore[union-attr]
    own_state = call.state_0 is None or isinstance(call.state_0, PerTask)

    def every(name: str) -> list[Any]:
        return [getattr(result, name) for result in results]

    frozen = {k for k in first.theta_J if k not in own_theta and k not in first.B_0}
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
        B_0={k: _join([B[k] for B in every("B_0")], k in own_theta, at=at) for k in first.B_0},
        S_0=_join(every("S_0"), own_state, at=at),
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


def _join_states(states: list[dict[str, Any]], own: bool) -> dict[str, Any]:
    """States joined slot by slot; their counts are the same."""
    first = states[0]
    return {slot: held if slot in COUNTS else _join([s[slot] for s in states], own) for slot, held in first.items()}


def _join(parts: list[Any], own: bool, given: Any = None, at: int = 0) -> Any:
    """The sum of the parts' tensors, or where they are the tasks' `own` (or `given` marked so) all of them in a row.

    `at` is the dimension of the tasks.
    """
    own = own or isinstance(given, PerTask)
    while given is not None and unmarked(given) is not given:
        given = given.value
        own = own or isinstance(given, PerTask)
    first = parts[0]
    if isinstance(first, Mapping):
        entry = given if isinstance(given, Mapping) else {}
        return {k: _join([part[k] for part in parts], own, entry.get(k), at) for k in first}
    if isinstance(first, (tuple, list)):
        beside = given or [None] * len(first)
        return type(first)(_join([part[i] for part in parts], own, beside[i], at) for i in range(len(first)))
    return torch.cat(parts, at) if own else torch.stack(parts).sum(0)
