"""Adam, as in `torch.optim.Adam`, with coupled weight decay and maximize.

Equations, with t = k + 1 the number of this step and σ = -1 under maximize, else 1:

    g  = σ·G + w·theta                     w = weight_decay
    m' = beta1·m + (1 - beta1)·g           exp_avg
    v' = beta2·v + (1 - beta2)·g²          exp_avg_sq
    d  = rho + eps,  rho = sqrt(v'/c2 + eps_root)    c1 = 1 - beta1^t,  c2 = 1 - beta2^t
    theta' = theta - lr·m' / (c1·d)

Theorem. Where rho > 0 the update is differentiable. With

    P = -lr / (c1·d)                       = ∂theta'/∂m'
    Q = lr·m' / (2·c1·c2·d²·rho)           = ∂theta'/∂v'
    D = (1 - beta1)·P + 2·(1 - beta2)·g·Q  = ∂theta'/∂g

the derivatives are those of `CLOSED`; in particular the paper's O = ∂theta'/∂G = σ·D and
∂theta'/∂theta = 1 + w·D. (v' = eps_root = 0 is the subject of zero_gradient.py.)

Source of the rule: the documentation of `torch.optim.Adam`, where eps_root = 0, and of `optax.adam`.
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
    eps_root,
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
    without,
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
    "eps_root": eps_root,
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
        "eps_root": "c2*Q",
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
    rho = sp.sqrt(x / c2 + eps_root)
    d = rho + eps
    P = -lr / (c1 * d)
    Q = lr * m1 / (2 * c1 * c2 * d**2 * rho)
    D = (1 - beta1) * P + 2 * (1 - beta2) * g * Q
    where = {"s": sp.sympify(sign), "w": weight_decay, "g": g, "m": m, "v": v, "m1": m1, "v1": v1, "x": x}
    return Rule(
        inputs=INPUTS,
        outputs={"theta": theta - lr * m1 / (c1 * d), "exp_avg": m1, "exp_avg_sq": v1},
        step=k,
        where=where | {"c1": c1, "c2": c2, "d": d, "t": t, "k": k, "P": P, "Q": Q, "D": D},
        rational={v: ((root**2 - eps_root) * c2 - (1 - beta2) * g**2) / beta2},
    )


def cases() -> Iterator[Case]:
    """Every combination of Adam's options but amsgrad."""
    for maximize in (False, True):
        rule = adam(-1 if maximize else 1)
        plain = without(rule, eps_root)
        yield Case(f"Adam(weight_decay, maximize={maximize})", Adam(weight_decay=0.1, maximize=maximize), plain)
        yield Case(f"Adam(maximize={maximize})", Adam(maximize=maximize), plain, {weight_decay: 0})
        rooted = Adam(weight_decay=0.1, eps_root=0.1, maximize=maximize)
        yield Case(f"Adam(weight_decay, eps_root, maximize={maximize})", rooted, rule)


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    prove_closed_forms(proved, "Adam", adam(sigma), CLOSED)
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
