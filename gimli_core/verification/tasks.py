"""A question of T tasks as T questions of one inner loop each: L is their mean or sum, and so is every derivative.

    L = c · Σ_t L_t,   c = 1 or 1/T
    dL/dx = c · Σ_t dL_t/dx  where the tasks share x;   dL/dx_t = c · dL_t/dx_t  where each has its own

The slices are taken here anew: nothing of the engine's way to run tasks enters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gimli_core.arguments.batches import check_val_batch
from gimli_core.meta_parameters.marks import PerTask
from gimli_core.notation import COUNTS
from gimli_core.trees import bare, folded, leaves, rebuilt
from gimli_core.verification.question import RESULTS, Entries, Key, Question

__all__ = ["joined", "keys_by_task", "leaves_of", "of_each", "scale_of"]


def scale_of(question: Question) -> float:
    """c, what the sum of the tasks' losses is multiplied by."""
    tasks = question.tasks
    return 1.0 if tasks is None or tasks.reduce == "sum" else 1 / tasks.count


def of_each(question: Question) -> list[Question]:
    """The question of each task alone; this one if there are no tasks."""
    tasks = question.tasks
    return [question] if tasks is None else [_of_task(question, t) for t in range(tasks.count)]


def _of_task(question: Question, t: int) -> Question:
    call = replace(
        question.call,
        theta_0=_part(question.call.theta_0, t),
        train_batches=lambda j: _of_batch(question.batch(j), t),
        val_batch=lambda j: _of_batch(check_val_batch(question.call.val_batch, question.steps)(j), t),
        phi_opt=_part(question.phi_opt, t),
        phi_loss=_part(question.phi_loss, t),
        state_0=_part(question.call.state_0, t),
        tasks=None,
    )
    return replace(question, call=call)


def leaves_of(leaves: Entries, by_task: Collection[Key], t: int) -> Entries:
    """The meta-parameters of task t: its slice of those in `by_task`, the others whole."""
    return {key: leaf[t] if key in by_task else leaf for key, leaf in leaves.items()}


def joined(each: Sequence[Entries], by_task: Collection[Key], scale: float) -> Entries:
    """c times the derivatives of every task: in a row where a task has its own, summed where they share."""
    gradient: Entries = {}
    for key in each[0]:
        parts = torch.stack([entries[key] for entries in each])
        gradient[key] = scale * (parts if key in by_task else parts.sum(0))
    return gradient


def keys_by_task(question: Question) -> frozenset[Key]:
    """The meta-parameters that each task has of its own: those marked `per_task`."""
    trees = (question.phi_opt, question.phi_loss, question.call.theta_0, question.call.state_0)
    return frozenset(key for name, tree in zip(RESULTS, trees, strict=True) for key in _marked_by_task(tree, (name,)))


def _marked_by_task(tree: Any, path: Key) -> list[Key]:
    return [(*path, *bare(at)) for at, _ in leaves(tree) if PerTask in at]


def _part(value: Any, t: int) -> Any:
    """What task t has of an argument: its slice of what is marked, without that mark; all of the rest."""

    def leaf(path: Key, x: Any) -> Any:
        if PerTask not in path or not isinstance(x, Tensor) or any(key in COUNTS for key in path):
            return x
        # Whether an nn.Parameter requires grad says whether it is trained.
        return nn.Parameter(x.detach()[t], x.requires_grad) if isinstance(x, nn.Parameter) else x[t]

    def node(path: Key, part: Any, results: dict[Any, Any]) -> Any:
        return results[PerTask] if isinstance(part, PerTask) else rebuilt(path, part, results)

    return folded(value, leaf, node)


def _of_batch(batch: Any, t: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[t] if isinstance(leaf, Tensor) else leaf, batch)
