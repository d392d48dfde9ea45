"""RMSprop, as in `torch.optim.RMSprop`, plain and centered, with momentum and without.

    g = ±G + w·theta,   v' = alpha·v + (1 - alpha)·g²,   a' = alpha·a + (1 - alpha)·g where centered
    x = v' - a'²  or  v',   q = g / (sqrt(x) + eps),   b' = momentum·b + q,   theta' = theta - lr·b'  or  theta - lr·q

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
    b,
    eps,
    k,
    lr,
    momentum,
    positive,
    real,
    run,
    theta,
    v,
    weight_decay,
)
from gimli_core.optimizers import RMSprop

(alpha,) = positive("alpha")
(a,) = real("a")


def rmsprop(sign: int, centered: bool, buffered: bool) -> Rule:
    """The equations above for one scalar."""
    g = sign * G + weight_decay * theta
    outputs = {"square_avg": alpha * v + (1 - alpha) * g**2}
    inputs = {
        "G": G,
        "theta": theta,
        "square_avg": v,
        "lr": lr,
        "alpha": alpha,
        "eps": eps,
        "weight_decay": weight_decay,
    }
    x = outputs["square_avg"]
    if centered:
        inputs["grad_avg"], outputs["grad_avg"] = a, alpha * a + (1 - alpha) * g
        x = x - outputs["grad_avg"] ** 2
    q = g / (sp.sqrt(x) + eps)
    if buffered:
        inputs |= {"momentum_buffer": b, "momentum": momentum}
        q = outputs["momentum_buffer"] = momentum * b + q
    return Rule(inputs, {"theta": theta - lr * q, **outputs}, step=k, where={}, rational={}, steps=(0,))


def cases() -> list[Case]:
    """Every combination of switches."""
    return [
        Case(
            f"RMSprop(centered={centered}, momentum={'on' if buffered else 'off'}, maximize={up})",
            RMSprop(weight_decay=0.1, centered=centered, momentum=0.9 if buffered else 0.0, maximize=up),
            rmsprop(-1 if up else 1, centered, buffered),
        )
        for centered in (False, True)
        for buffered in (False, True)
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
