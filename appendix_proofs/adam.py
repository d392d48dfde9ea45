"""Adam, as in `torch.optim.Adam`, with coupled weight decay and maximize.

Equations, with t = k + 1 the number of this step and σ = -1 under maximize, else 1:

    g  = σ·G + w·theta                     w = weight_decay
    m' = beta1·m + (1 - beta1)·g           exp_avg
    v' = beta2·v + (1 - beta2)·g²          exp_avg_sq
    d  = sqrt(v') / sqrt(c2) + eps         c1 = 1 - beta1^t,  c2 = 1 - beta2^t
    theta' = theta - lr·m' / (c1·d)

Theorem. Where v' > 0 the update is differentiable. With r = sqrt(v') and

    P = -lr / (c1·d)                       = ∂theta'/∂m'
    Q = lr·m' / (2·c1·d²·r·sqrt(c2))       = ∂theta'/∂v'
    D = (1 - beta1)·P + 2·(1 - beta2)·g·Q  = ∂theta'/∂g

the derivatives are those of `CLOSED`; in particular the paper's O = ∂theta'/∂G = σ·D and
∂theta'/∂theta = 1 + w·D. (v' = 0 is the subject of zero_gradient.py.)

Source of the rule: the documentation of `torch.optim.Adam`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sympy as sp
from sympy import Expr, Symbol

from appendix_proofs.shipped import Case, check_shipped
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
    prove_closed_forms,
    root,
    run,
    sigma,
    theta,
    v,
    weight_decay,
)
from gimli_core.optimizers import Adam

INPUTS = {
    "G": G,
    "theta": theta,
    "exp_avg": m,
    "exp_avg_sq": v,
    "lr": lr,
    "beta1": beta1,
    "beta2": beta2,
    "eps": eps,
    "weight_decay": weight_decay,
}

# Derivatives of the moments, shared with amsgrad.py.
MOMENTS = {
    "exp_avg": {
        "exp_avg": "beta1",
        "G": "s*(1 - beta1)",
        "theta": "w*(1 - beta1)",
        "weight_decay": "theta*(1 - beta1)",
        "beta1": "m - g",
    },
    "exp_avg_sq": {
        "exp_avg_sq": "beta2",
        "G": "2*s*(1 - beta2)*g",
        "theta": "2*w*(1 - beta2)*g",
        "weight_decay": "2*theta*(1 - beta2)*g",
        "beta2": "v - g**2",
    },
}

CLOSED = MOMENTS | {
    "theta": {
        "G": "s*D",
        "theta": "1 + w*D",
        "weight_decay": "theta*D",
        "exp_avg": "beta1*P",
        "exp_avg_sq": "beta2*Q",
        "lr": "-m1/(c1*d)",
        "eps": "lr*m1/(c1*d**2)",
        "beta1": "(m - g)*P + m1*P*t*beta1**k/c1",
        "beta2": "(v - g**2)*Q + v1*Q*t*beta2**k/c2",
    },
}


def adam(sign: int | Symbol, largest: Callable[[Expr], Expr] | None = None) -> Rule:
    """The equations above for one scalar, σ = `sign`; under amsgrad x = `largest`(v') is in the place of v'."""
    t = k + 1
    g = sign * G + weight_decay * theta
    m1 = beta1 * m + (1 - beta1) * g
    v1 = beta2 * v + (1 - beta2) * g**2
    x = v1 if largest is None else largest(v1)
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    d = sp.sqrt(x) / sp.sqrt(c2) + eps
    P = -lr / (c1 * d)
    Q = lr * m1 / (2 * c1 * d**2 * sp.sqrt(x) * sp.sqrt(c2))
    D = (1 - beta1) * P + 2 * (1 - beta2) * g * Q
    where = {"s": sp.sympify(sign), "w": weight_decay, "g": g, "m": m, "v": v, "m1": m1, "v1": v1, "x": x}
    return Rule(
        inputs=INPUTS,
        outputs={"theta": theta - lr * m1 / (c1 * d), "exp_avg": m1, "exp_avg_sq": v1},
        step=k,
        where=where | {"c1": c1, "c2": c2, "d": d, "t": t, "k": k, "P": P, "Q": Q, "D": D},
        rational={v: (root**2 - (1 - beta2) * g**2) / beta2},
    )


def cases() -> Iterator[Case]:
    """Every combination of Adam's options but amsgrad."""
    for maximize in (False, True):
        rule = adam(-1 if maximize else 1)
        yield Case(f"Adam(weight_decay, maximize={maximize})", Adam(weight_decay=0.1, maximize=maximize), rule)
        yield Case(f"Adam(maximize={maximize})", Adam(maximize=maximize), rule, {weight_decay: 0})


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    prove_closed_forms(proved, "Adam", adam(sigma), CLOSED)
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
