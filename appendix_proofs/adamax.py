"""Adamax, as in `torch.optim.Adamax`.

    g = ±G + w·theta,   m' = beta1·m + (1 - beta1)·g,   u' = max(beta2·u, |g| + eps)
    theta' = theta - lr / (1 - beta1^t)·m' / u'

Away from ties of the maximum and from g = 0 the rule is smooth on either side of the maximum.

The Jacobian is sympy's, of these equations; no formula of the pullback enters. It is evaluated with 50 digits and
compared with the shipped step and pullback in float64, to the rounding that the condition of each entry allows.
"""

from __future__ import annotations

import sympy as sp

from appendix_proofs.shipped import Case, check_float64
from appendix_proofs.symbolic import (
    G,
    Rule,
    Statements,
    beta1,
    beta2,
    eps,
    k,
    lr,
    m,
    positive,
    run,
    theta,
    weight_decay,
)
from gimli_core.optimizers import Adamax

(u,) = positive("u")


def adamax(sign: int, kept: bool) -> Rule:
    """The equations above for one scalar, where the old norm is kept, or the new one taken."""
    g = sign * G + weight_decay * theta
    m1 = beta1 * m + (1 - beta1) * g
    u1 = beta2 * u if kept else sp.sqrt(g**2) + eps
    return Rule(
        inputs={
            "G": G, "theta": theta, "exp_avg": m, "exp_inf": u, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps,
            "weight_decay": weight_decay,
        },
        outputs={"theta": theta - lr * m1 / ((1 - beta1 ** (k + 1)) * u1), "exp_avg": m1, "exp_inf": u1},
        step=k, where={}, rational={}, steps=(0, 1, 9),
    )  # fmt: skip


def cases() -> list[Case]:
    """Both sides of the maximum, both signs."""
    size = {True: (9.0,) * 7, False: (1e-4,) * 7}
    nonzero = {"beta2": (0.9,) * 7, "theta": (0.75, -1.25, 2.0, -0.3, 0.5, 1e-3, 1.0), "weight_decay": (0.01,) * 7}
    return [
        Case(
            f"Adamax(maximize={up}), the norm {'kept' if kept else 'taken'}",
            Adamax(weight_decay=0.1, maximize=up),
            adamax(-1 if up else 1, kept),
            points={"exp_inf": size[kept], **nonzero},
        )
        for kept in (True, False)
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
