"""Adadelta, as in `torch.optim.Adadelta`.

    g = ±G + w·theta,   v' = rho·v + (1 - rho)·g²,   delta = g·sqrt(a + eps) / sqrt(v' + eps)
    a' = rho·a + (1 - rho)·delta²,   theta' = theta - lr·delta

The Jacobian is sympy's, of these equations; no formula of the pullback enters. It is evaluated with 50 digits and
compared with the shipped step and pullback in float64, to the rounding that the condition of each entry allows.
"""

from __future__ import annotations

import sympy as sp

from appendix_proofs.shipped import Case, check_float64
from appendix_proofs.symbolic import G, Rule, Statements, eps, k, lr, positive, run, theta, v, weight_decay
from gimli_core.optimizers import Adadelta

a, rho = positive("a rho")


def adadelta(sign: int) -> Rule:
    """The equations above for one scalar."""
    g = sign * G + weight_decay * theta
    v1 = rho * v + (1 - rho) * g**2
    delta = g * sp.sqrt(a + eps) / sp.sqrt(v1 + eps)
    return Rule(
        inputs={
            "G": G, "theta": theta, "square_avg": v, "acc_delta": a, "lr": lr, "rho": rho, "eps": eps,
            "weight_decay": weight_decay,
        },
        outputs={"theta": theta - lr * delta, "square_avg": v1, "acc_delta": rho * a + (1 - rho) * delta**2},
        step=k, where={}, rational={}, steps=(0,),
    )  # fmt: skip


def cases() -> list[Case]:
    """Both signs."""
    return [
        Case(f"Adadelta(maximize={up})", Adadelta(weight_decay=0.1, maximize=up), adadelta(-1 if up else 1))
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
