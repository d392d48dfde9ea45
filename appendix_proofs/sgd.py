"""Plain SGD, as in `torch.optim.SGD` without momentum, with weight decay and maximize.

Equations, with σ = -1 under maximize, else 1:

    g      = σ·G + w·theta                 w = weight_decay
    theta' = theta - lr·g

Theorem 1. The derivatives are those of `CLOSED`; without weight decay and maximize

    ∂theta'/∂theta = 1,   O = ∂theta'/∂G = -lr,   ∂theta'/∂lr = -G.

Theorem 2. With these, lines 8-14 of Algorithm 1 are, for plain SGD,

    V_j = -lr·B_{j+1},   A_lr += -B_{j+1}·G_j,   A_loss += V_j·∇_φ∇_θ ℓ_j,   B_j = B_{j+1} + V_j·∇²_θ ℓ_j,

so that B_0 = B_J·Π_j (1 - lr·H_j) and A_lr = -Σ_j B_{j+1}·G_j. Plain SGD has no state: here the
recurrence in theta alone is exact.

The paper's Appendix A.1 as it is printed: appendix_proofs/printed_appendix.py.
Source of the rule: the documentation of `torch.optim.SGD`.
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp
from sympy import Symbol

from appendix_proofs.shipped import Case, check_shipped
from appendix_proofs.symbolic import (
    G,
    Rule,
    Statements,
    lr,
    prove_closed_forms,
    run,
    sigma,
    smooth,
    theta,
    weight_decay,
)
from gimli_core.optimizers import SGD

CLOSED = {"theta": {"G": "-s*lr", "theta": "1 - lr*w", "lr": "-g", "weight_decay": "-lr*theta"}}


def sgd(sign: int | Symbol) -> Rule:
    """The equations above for one scalar, σ = `sign`."""
    g = sign * G + weight_decay * theta
    return Rule(
        inputs={"G": G, "theta": theta, "lr": lr, "weight_decay": weight_decay},
        outputs={"theta": theta - lr * g},
        step=sp.Integer(0),
        where={"s": sp.sympify(sign), "w": weight_decay, "g": g},
        rational={},
        steps=(0, 1),
    )


def cases() -> Iterator[Case]:
    """Every combination of options without momentum."""
    for maximize in (False, True):
        rule = sgd(-1 if maximize else 1)
        yield Case(f"SGD(weight_decay, maximize={maximize})", SGD(weight_decay=0.1, maximize=maximize), rule)
        yield Case(f"SGD(maximize={maximize})", SGD(maximize=maximize), rule, {weight_decay: 0})


def prove_unrolled(proved: Statements, J: int) -> None:
    """Theorem 2 for undefined losses ℓ_j(theta, λ) and L_val(theta): total derivatives against the recurrence."""
    lam, theta_0 = sp.symbols("lambda theta_0")
    H = [sp.Function(f"H_{j}") for j in range(J)]
    mixed = [sp.Function(f"M_{j}") for j in range(J)]
    gradient = [smooth(f"G_{j}", H[j], mixed[j]) for j in range(J)]
    slope = sp.Function("L_theta")
    trajectory = [theta_0]
    for j in range(J):
        trajectory.append(trajectory[j] - lr * gradient[j](trajectory[j], lam))
    L_val = smooth("L", slope)(trajectory[J])

    B, A_lr, A_loss = slope(trajectory[J]), sp.Integer(0), sp.Integer(0)
    product = B
    for j in reversed(range(J)):
        at = (trajectory[j], lam)
        V = -lr * B
        A_lr += -B * gradient[j](*at)
        A_loss += V * mixed[j](*at)
        B = B + V * H[j](*at)
        product *= 1 - lr * H[j](*at)
    proved.equal(f"SGD, J = {J}: B_0 = dL_val/dtheta_0", B, sp.diff(L_val, theta_0))
    proved.equal(f"SGD, J = {J}: B_0 = B_J·Π_j (1 - lr·H_j)", B, product)
    proved.equal(f"SGD, J = {J}: A_lr = -Σ_j B_(j+1)·G_j = dL_val/dlr", A_lr, sp.diff(L_val, lr))
    proved.equal(f"SGD, J = {J}: A_loss = -lr·Σ_j B_(j+1)·M_j = dL_val/dλ", A_loss, sp.diff(L_val, lam))


def prove() -> list[str]:
    """Prove both theorems; return their statements."""
    proved = Statements()
    prove_closed_forms(proved, "SGD", sgd(sigma), CLOSED)
    for J in (1, 2, 3):
        prove_unrolled(proved, J)
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
