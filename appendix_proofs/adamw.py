"""AdamW, as in `torch.optim.AdamW`: Adam with decoupled weight decay.

Equations, with g = σ·G, and m', v', c1, c2, d as in adam.py:

    theta' = theta - lr·w·theta - lr·m' / (c1·d)          w = weight_decay

Theorem. Where v' > 0 the update is differentiable, with the derivatives of `CLOSED` (P, Q, D as in
adam.py). The decay has left the moments, so ∂m'/∂theta = ∂v'/∂theta = 0 and ∂theta'/∂theta = 1 - lr·w;
and lr stands in two terms: ∂theta'/∂lr = -m'/(c1·d) - w·theta.

Source of the rule: the documentation of `torch.optim.AdamW`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import sympy as sp
from sympy import Expr, Symbol

from appendix_proofs import adam
from appendix_proofs.shipped import Case, check_shipped
from appendix_proofs.symbolic import (
    Rule,
    Statements,
    eps_root,
    lr,
    prove_closed_forms,
    run,
    sigma,
    theta,
    weight_decay,
    without,
)
from gimli_core.optimizers import AdamW

COUPLED = ("theta", "weight_decay")
MOMENTS = {output: {by: f for by, f in of.items() if by not in COUPLED} for output, of in adam.MOMENTS.items()}

CLOSED = MOMENTS | {
    "theta": adam.CLOSED["theta"] | {"theta": "1 - lr*w", "weight_decay": "-lr*theta", "lr": "-m1/(c1*d) - w*theta"}
}


def decoupled(rule: Rule) -> Rule:
    """The rule without weight decay in g, and with -lr·w·theta in theta' instead."""

    def without(formulas: Mapping[Any, Expr]) -> dict[Any, Expr]:
        return {name: formula.xreplace({weight_decay: sp.Integer(0)}) for name, formula in formulas.items()}

    def outputs(branch: Mapping[str, Expr]) -> dict[str, Expr]:
        bare = without(branch)
        return bare | {"theta": bare["theta"] - lr * weight_decay * theta}

    return replace(
        rule,
        outputs=outputs(rule.outputs),
        other=None if rule.other is None else outputs(rule.other),
        where=without(rule.where) | {"w": weight_decay},
        rational=without(rule.rational),
    )


def adamw(sign: int | Symbol) -> Rule:
    """The equations above for one scalar, σ = `sign`."""
    return decoupled(adam.adam(sign))


def cases() -> Iterator[Case]:
    """Every combination of AdamW's options but amsgrad."""
    for maximize in (False, True):
        rule = adamw(-1 if maximize else 1)
        yield Case(f"AdamW(maximize={maximize})", AdamW(maximize=maximize), without(rule, eps_root))
        yield Case(f"AdamW(eps_root, maximize={maximize})", AdamW(eps_root=0.1, maximize=maximize), rule)
        no_decay = AdamW(weight_decay=0.0, maximize=maximize)
        yield Case(f"AdamW(weight_decay=0, maximize={maximize})", no_decay, without(rule, eps_root), {weight_decay: 0})


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    prove_closed_forms(proved, "AdamW", adamw(sigma), CLOSED)
    difference = adamw(sigma).outputs["theta"] - adam.adam(sigma).outputs["theta"]
    proved.equal("AdamW and Adam are one rule at weight_decay = 0", difference.subs(weight_decay, 0), 0)
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
