"""Every oracle, asked."""

from __future__ import annotations

from collections.abc import Collection

from gimli_core.environment import Environment
from gimli_core.verification.against import Answers
from gimli_core.verification.bounds import Bounds
from gimli_core.verification.oracles.dense_chain import LIMIT, dense_chain
from gimli_core.verification.oracles.finite_differences import finite_differences
from gimli_core.verification.oracles.plain_rules import RULES
from gimli_core.verification.question import VAL_LOSS, Question

__all__ = ["asked_of_oracles"]


def asked_of_oracles(
    question: Question, environment: Environment, bounds: Bounds, oracles: Collection[str]
) -> tuple[dict[str, Answers], list[str]]:
    """What each oracle says, and notes on what it cannot say."""
    answers: dict[str, Answers] = {"autograd": {VAL_LOSS: bounds.strict.loss, **bounds.strict.gradient}}
    notes = []
    if bounds.reference is not bounds.strict:
        answers["autograd, sqrt'(0) = 0"] = {VAL_LOSS: bounds.reference.loss, **bounds.reference.gradient}
        notes.append(
            "autograd gives NaN where sqrt meets 0 and its factor is 0; the second takes the product's limit, 0."
        )
    if question.left_out.first_order or question.left_out.first(question.steps):
        notes.append("an approximation is judged as what it says: by autograd alone, with the same left out.")
        return answers, notes
    if "finite_differences" in oracles:
        answers["finite differences"] = finite_differences(question, environment)
    if "dense_chain" in oracles:
        chain = dense_chain(question, environment, root=bounds.root)
        answers["dense chain"] = chain or {}
        if chain is None:
            notes.append(f"the dense chain is left out: more than {LIMIT} elements of state and meta-parameters.")
    rule = type(question.call.problem.optimizer)
    if rule not in RULES:
        notes.append(
            f"{rule.__name__} has no plain rule here: every oracle runs its own step, which checks its pullback only."
        )
    return answers, notes
