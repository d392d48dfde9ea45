"""SparseAdam's dense equivalent: Adam where g ≠ 0, nothing where g = 0.

    g = ±G,   m' = beta1·m + (1 - beta1)·g,   v' = beta2·v + (1 - beta2)·g²
    theta' = theta - lr·sqrt(1 - beta2^t) / (1 - beta1^t)·m' / (sqrt(v') + eps)

These are the equations where g ≠ 0. At g = 0 the step is the identity of (theta, m, v); where m = 0 the equations
have the limit theta there, so that theta' is continuous in g and has their derivative.

The Jacobian is sympy's, of these equations; no formula of the pullback enters. It is evaluated with 50 digits and
compared with the shipped step and pullback in float64, to the rounding that the condition of each entry allows.
"""

from __future__ import annotations

import sympy as sp

from appendix_proofs.shipped import Case, check_float64
from appendix_proofs.symbolic import G, Rule, Statements, beta1, beta2, eps, k, lr, m, run, theta, v
from gimli_core.optimizers import SparseAdam


def sparse_adam(sign: int) -> Rule:
    """The equations above for one scalar with g ≠ 0."""
    g = sign * G
    m1, v1 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    rate = lr * sp.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))
    return Rule(
        inputs={
            "G": G,
            "theta": theta,
            "exp_avg": m,
            "exp_avg_sq": v,
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
        },
        outputs={"theta": theta - rate * m1 / (sp.sqrt(v1) + eps), "exp_avg": m1, "exp_avg_sq": v1},
        step=k,
        where={},
        rational={},
        steps=(0, 1, 9),
    )


def cases() -> list[Case]:
    """Both signs."""
    touched = {"G": (0.5, -0.25, 1.5, -2.0, 1e-4, 3.0, 0.1)}
    return [
        Case(f"SparseAdam(maximize={up}), g ≠ 0", SparseAdam(maximize=up), sparse_adam(-1 if up else 1), points=touched)
        for up in (False, True)
    ]


def prove() -> list[str]:
    """Compare every derivative; return the statements."""
    proved = Statements()
    for case in cases():
        check_float64(proved, case.label, case.optimizer, case.references())
    return proved


if __name__ == "__main__":
    run(prove)
