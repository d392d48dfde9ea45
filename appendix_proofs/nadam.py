"""NAdam, as in `torch.optim.NAdam`.

    g = ±G + w·theta, or theta ← theta·(1 - lr·w) where the decay is decoupled
    m' = beta1·m + (1 - beta1)·g,   v' = beta2·v + (1 - beta2)·g²,   d = sqrt(v' / (1 - beta2^t) + eps_root) + eps
    mu_t = beta1·(1 - 0.96^(t·momentum_decay) / 2),   P' = P·mu_t
    theta' = theta - lr·(1 - mu_t) / (1 - P')·g / d - lr·mu_{t+1} / (1 - P'·mu_{t+1})·m' / d

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
    eps_root,
    k,
    lr,
    m,
    positive,
    run,
    theta,
    v,
    weight_decay,
    without,
)
from gimli_core.optimizers import NAdam

P, momentum_decay = positive("P momentum_decay")


def nadam(sign: int, decoupled: bool) -> Rule:
    """The equations above for one scalar."""
    t = k + 1
    g = sign * G + (0 if decoupled else weight_decay * theta)
    start = theta * (1 - lr * weight_decay) if decoupled else theta
    m1, v1 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    mu, mu_next = (beta1 * (1 - sp.Rational(0.96) ** (i * momentum_decay) / 2) for i in (t, t + 1))
    d = sp.sqrt(v1 / (1 - beta2**t) + eps_root) + eps
    P1 = P * mu
    moved = start - lr * (1 - mu) / (1 - P1) * g / d - lr * mu_next / (1 - P1 * mu_next) * m1 / d
    return Rule(
        inputs={
            "G": G, "theta": theta, "exp_avg": m, "exp_avg_sq": v, "mu_product": P, "lr": lr, "beta1": beta1,
            "beta2": beta2, "eps": eps, "eps_root": eps_root, "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
        },
        outputs={"theta": moved, "exp_avg": m1, "exp_avg_sq": v1, "mu_product": P1},
        step=k, where={}, rational={}, steps=(0, 1, 9),
    )  # fmt: skip


def cases() -> list[Case]:
    """Every combination of switches."""
    return [
        Case(
            f"NAdam(decoupled={decoupled}, {'eps_root, ' * rooted}maximize={maximize})",
            NAdam(weight_decay=0.1, eps_root=0.1 * rooted, decoupled_weight_decay=decoupled, maximize=maximize),
            nadam(-1 if maximize else 1, decoupled)
            if rooted
            else without(nadam(-1 if maximize else 1, decoupled), eps_root),
        )
        for decoupled in (False, True)
        for maximize in (False, True)
        for rooted in (False, True)
    ]


def prove() -> list[str]:
    """Compare every derivative; return the statements."""
    proved = Statements()
    for case in cases():
        check_float64(proved, case.label, case.optimizer, case.references())
    return proved


if __name__ == "__main__":
    run(prove)
