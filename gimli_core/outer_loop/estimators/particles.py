"""Inner loops at several phi as the tasks of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gimli_core.arguments.batches import check_batches, check_val_batch
from gimli_core.arguments.call import Call
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.marks import PerTask, per_task, unmarked
from gimli_core.notation import COUNTS, State
from gimli_core.transforms.tasks import Tasks, check_tasks
from gimli_core.trees import KeyPath, zipped_at

__all__ = ["as_tasks"]


def as_tasks(calls: Sequence[Call], chunk: int | None = None) -> Call:
    """n calls, each of one inner loop or of T tasks, as one call of n·T tasks: the T of the first call come first.

    What is the same tensor in all calls is shared, not copied. `chunk` is how many calls are run at a time.
    """
    first, n = calls[0], len(calls)
    tasks = check_tasks(first.tasks)
    T = 1 if tasks is None else tasks.count
    if isinstance(first.val_weights, Tensor) and first.val_weights.requires_grad:
        do = "gimli.Unrolled learns them."
        raise unexpected("val_weights", "numbers, or None", "a tensor that requires grad", do)
    batches, J = [check_batches(call.train_batches, call.steps)[0] for call in calls], _steps(first)
    val_batches = [check_val_batch(call.val_batch, J) for call in calls]
    marked: dict[str, Any] = {"theta_0": per_task(_theta_of_all([call.theta_0 for call in calls], T))}
    if first.state_0 is not None:
        marked["state_0"] = per_task(_state_of_all([call.state_0 for call in calls], T))
    return replace(
        first,
        **marked,
        train_batches=lambda j: _batch_of_all([batch(j) for batch in batches], T, tasks is not None),
        val_batch=lambda j: _batch_of_all([batch(j) for batch in val_batches], T, tasks is not None),
        steps=J,
        phi_opt=_of_all([call.phi_opt for call in calls], T),
        phi_loss=_of_all([call.phi_loss for call in calls], T),
        tasks=Tasks(n * T, chunk=None if chunk is None else chunk * T),
    )


def _steps(call: Call) -> int:
    return check_batches(call.train_batches, call.steps)[1]


def _stacked(values: Sequence[Tensor], T: int, by_task: bool) -> Tensor:
    """[n·T, …] of n tensors, each `[T, …]` already or one for its T tasks."""
    first, n = values[0].detach(), len(values)
    if all(value is values[0] for value in values) and not by_task:
        return first.expand(n * T, *first.shape)
    parts = [value.detach() for value in values]
    return torch.cat(parts) if by_task else torch.stack(parts).repeat_interleave(T, 0)


def _theta_of_all(thetas: Sequence[Any], T: int) -> dict[str, Tensor]:
    by_task = isinstance(thetas[0], PerTask)
    joined = {k: _stacked([unmarked(theta)[k] for theta in thetas], T, by_task) for k in unmarked(thetas[0])}
    for k, v in unmarked(thetas[0]).items():
        if isinstance(v, nn.Parameter) and not v.requires_grad:  # held constant
            joined[k] = nn.Parameter(joined[k], requires_grad=False)
    return joined


def _state_of_all(states: Sequence[Any], T: int) -> State:
    by_task, first = isinstance(states[0], PerTask), unmarked(states[0])
    of_slot = {slot: [unmarked(state)[slot] for state in states] for slot in first if slot not in COUNTS}
    counts = {slot: first[slot] for slot in first if slot in COUNTS}
    return counts | {
        slot: {k: _stacked([moments[k] for moments in all_of], T, by_task) for k in all_of[0]}
        for slot, all_of in of_slot.items()
    }


def _of_all(values: Sequence[Any], T: int) -> Any:
    """A tree of hyperparameters or of phi_loss, with what differs between the calls marked `per_task`."""

    def joined(path: KeyPath, *of_place: Any) -> Any:
        first = of_place[0]
        if isinstance(first, Tensor):
            if PerTask in path:
                return _stacked(of_place, T, by_task=True)
            same = all(value is first for value in of_place)
            return first.detach() if same else per_task(_stacked(of_place, T, by_task=False))
        if isinstance(first, (int, float)) and any(value != first for value in of_place):
            return per_task(torch.tensor([float(v) for v in of_place], dtype=torch.float64).repeat_interleave(T))
        return first

    return zipped_at(joined, *values)


def _batch_of_all(batches: Sequence[Any], T: int, by_task: bool) -> Any:
    def of_leaf(*leaves: Any) -> Any:
        if not isinstance(leaves[0], Tensor):
            return leaves[0]
        if by_task and all(leaf is leaves[0] for leaf in leaves):
            return leaves[0].repeat(len(leaves), *(1 for _ in leaves[0].shape[1:]))
        return _stacked(leaves, T, by_task)

    return pytree.tree_map(of_leaf, batches[0], *batches[1:])
