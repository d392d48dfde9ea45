"""A question of k outer losses as k questions of one each: row q of every derivative is held against dL_q."""

from __future__ import annotations

from dataclasses import replace

from gimli_core.environment import Environment, split_frozen
from gimli_core.verification.question import Entries, Key, Question, same_randomness
from gimli_core.verification.tasks import keys_by_task, leaves_of, of_each

__all__ = ["key_of_row", "like_results", "of_row", "of_rows"]


def of_rows(question: Question, environment: Environment) -> list[Question]:
    """The question of each outer loss; this one alone if val_loss returns one number. Cost F, of one task."""
    one = of_each(question)[0]
    leaves = leaves_of(question.entries(), keys_by_task(question), 0)
    theta = {**split_frozen(one.call.theta_0)[1], **{key[1]: leaf for key, leaf in leaves.items() if key[0] == "B_0"}}
    with same_randomness(environment):
        L = one.outer_loss(theta, one.phi_of(leaves), one.steps)
    return [question] if L.ndim == 0 else [replace(question, row=q) for q in range(len(L))]


def like_results(entries: Entries, rows: list[Question]) -> Entries:
    """Entries of the shapes that their derivatives have: with a leading k, of k outer losses."""
    if rows[0].row is None:
        return entries
    return {key: value.expand(len(rows), *value.shape) for key, value in entries.items()}


def of_row(entries: Entries, row: int | None) -> Entries:
    """The derivatives of one outer loss."""
    return entries if row is None else {key: value[row] for key, value in entries.items()}


def key_of_row(key: Key, row: int | None) -> Key:
    """Where a result has it: `A_opt["lr"][2]` of outer loss 2, and `val_loss[2]`."""
    return key if row is None else (*key, row)
