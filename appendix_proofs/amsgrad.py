"""The amsgrad variant of Adam and AdamW, as in `torch.optim.Adam(amsgrad=True)`.

Equations, with everything else as in adam.py or adamw.py:

    x' = max(x, v')                        max_exp_avg_sq, the running maximum
    d  = sqrt(x'/c2 + eps_root) + eps

Theorem. With Q taken at x' (Q = lr·m' / (2·c1·c2·d²·sqrt(x'/c2 + eps_root))), and x' > 0,

    kept,  x > v':   ∂theta'/∂x = Q,  and nothing passes from theta' to v or, through v', to g
    taken, x < v':   ∂theta'/∂x = 0,  and the derivatives are Adam's
    tie,   x = v':   max has the one-sided derivatives 0 and 1 in each argument; their mean, 1/2 each, makes
                     every derivative the mean of the two branches (the convention of torch)

and `CLOSED` gives each derivative, with p the share that v' gets: 0, 1 or 1/2.
From the zero state the first step has x = 0 < v' unless g = 0, so it takes v'.

Source of the rule: the documentation of `torch.optim.Adam` and `torch.optim.AdamW`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import sympy as sp
from sympy import Symbol

from appendix_proofs import adam, adamw
from appendix_proofs.shipped import POINTS, Case, check_shipped
from appendix_proofs.symbolic import (
    M,
    Rule,
    Statements,
    beta1,
    beta2,
    eps_root,
    positive,
    prove_closed_forms,
    root,
    run,
    sigma,
    v,
    without,
)
from gimli_core.optimizers import Adam, AdamW

SHARE = {"kept": sp.Integer(0), "taken": sp.Integer(1), "tie": sp.Rational(1, 2)}
(gap,) = positive("gap")  # the distance between x and v'

CLOSED = adam.MOMENTS | {
    "theta": adam.CLOSED["theta"]
    | {
        "G": "s*D",
        "exp_avg_sq": "p*beta2*Q",
        "max_exp_avg_sq": "(1 - p)*Q",
        "beta2": "p*(v - g**2)*Q + x*Q*t*beta2**k/c2",
    },
    "max_exp_avg_sq": {by: f"p*({formula})" for by, formula in adam.MOMENTS["exp_avg_sq"].items()}
    | {"max_exp_avg_sq": "1 - p"},
}
DECOUPLED = {output: {by: f for by, f in of.items() if by not in adamw.COUPLED} for output, of in CLOSED.items()}
DECOUPLED["theta"] |= {by: adamw.CLOSED["theta"][by] for by in (*adamw.COUPLED, "lr")}


def amsgrad(sign: int | Symbol, branch: str) -> Rule:
    """Adam's equations for one scalar with x' in the place of v', on one branch of the maximum."""

    def on(largest: str) -> Rule:
        rule = adam.adam(sign, lambda v1: M if largest == "kept" else v1)
        return replace(rule, outputs={**rule.outputs, "max_exp_avg_sq": rule.where["x"]})

    rule = on("kept" if branch == "tie" else branch)
    share, where = SHARE[branch], rule.where
    D = (1 - beta1) * where["P"] + 2 * share * (1 - beta2) * where["g"] * where["Q"]
    largest = (root**2 - eps_root) * where["c2"]  # x'
    second = largest - gap if branch == "kept" else largest  # v'
    return replace(
        rule,
        inputs={**rule.inputs, "max_exp_avg_sq": M},
        where={**where, "p": share, "D": D},
        rational={
            v: (second - (1 - beta2) * where["g"] ** 2) / beta2,
            M: largest - gap if branch == "taken" else largest,
        },
        other=on("taken").outputs if branch == "tie" else None,
    )


def cases() -> Iterator[Case]:
    """Amsgrad of both rules with weight decay, minimising and maximising, on every branch."""
    for maximize in (False, True):
        for branch in SHARE:
            rule = amsgrad(-1 if maximize else 1, branch)
            for kind, of in ((Adam, rule), (AdamW, adamw.decoupled(rule))):
                for rooted in (False, True):
                    optimizer = kind(weight_decay=0.1, amsgrad=True, eps_root=0.1 * rooted, maximize=maximize)
                    label = f"{kind.__name__}(amsgrad, {'eps_root, ' * rooted}maximize={maximize}), {branch}"
                    mine = of if rooted else without(of, eps_root)
                    yield Case(label, optimizer, mine, points=points(branch, mine))


def points(branch: str, rule: Rule) -> dict[str, tuple[float, ...]]:
    """Values at which `branch` is the one; for a tie, v' is exact in float64."""
    count = len(POINTS["theta"])
    if branch != "tie":
        return {"max_exp_avg_sq": ((64.0,) if branch == "kept" else (2.0**-60,)) * count}
    exact = {
        "theta": (0.75, -1.25, 2.0, -0.5, 0.0, 1.0, 1.0),
        "G": (0.5, -0.25, 1.5, -2.0, 0.125, 3.0, 0.0),
        "exp_avg_sq": (0.25, 0.5, 2.0, 1.0, 0.125, 0.0, 0.5),
        "weight_decay": (0.5, 0.25, 0.125, 0.0, 1.0, 0.5, 0.0),
        "beta2": (0.5, 0.75, 0.5, 0.25, 0.5, 0.75, 0.5),
    }
    v1 = rule.outputs["exp_avg_sq"]
    rows = [dict(zip(exact, row, strict=True)) for row in zip(*exact.values(), strict=True)]
    tied = tuple(float(v1.subs({rule.inputs[name]: number for name, number in row.items()})) for row in rows)
    return {**exact, "max_exp_avg_sq": tied}


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    for branch in SHARE:
        rule = amsgrad(sigma, branch)
        prove_closed_forms(proved, f"amsgrad, {branch}", rule, CLOSED)
        prove_closed_forms(proved, f"amsgrad of AdamW, {branch}", adamw.decoupled(rule), DECOUPLED)
    (h,) = positive("h")
    up = (sp.Max(v + h, v) - v) / h
    down = (v - sp.Max(v - h, v)) / h
    proved.equal(
        "amsgrad: at a tie max has right and left derivative 1 and 0, of mean 1/2", (up + down) / 2, SHARE["tie"]
    )
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
