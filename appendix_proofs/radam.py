"""RAdam, as in `torch.optim.RAdam`, on either side of its switch.

    g, m', v' as in Adam (theta ← theta·(1 - lr·w) where the decay is decoupled),   rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2·t·beta2^t / (1 - beta2^t)
    r = sqrt((rho - 4)(rho - 2)·rho_inf / ((rho_inf - 4)(rho_inf - 2)·rho))
    scale = r·sqrt(1 - beta2^t) / (sqrt(v') + eps)  where rho > 5,  else  1
    theta' = theta - lr·m' / (1 - beta1^t)·scale

The switch depends on t and beta2 alone: each side is a smooth rule of its own. At rho = 5 scale jumps, since
r = sqrt(3·rho_inf / (5·(rho_inf - 4)(rho_inf - 2))) there depends on rho_inf and the other factor on v', while the
other side is 1: no derivative by beta2 exists at that point.

The Jacobian is sympy's, of these equations; no formula of the pullback enters. It is evaluated with 50 digits and
compared with the shipped step and pullback in float64, to the rounding that the condition of each entry allows.
"""

from __future__ import annotations

import sympy as sp

from appendix_proofs.shipped import Case, check_float64
from appendix_proofs.symbolic import G, Rule, Statements, beta1, beta2, eps, k, lr, m, run, theta, v, weight_decay
from gimli_core.optimizers import RAdam

RECTIFIABLE = {"beta2": (0.999, 0.99, 0.95, 0.9, 0.95, 0.999, 0.99)}


def radam(sign: int, decoupled: bool, rectified: bool) -> Rule:
    """One side of the switch, for one scalar; the steps are such that rho is on that side at RECTIFIABLE."""
    t = k + 1
    g = sign * G + (0 if decoupled else weight_decay * theta)
    start = theta * (1 - lr * weight_decay) if decoupled else theta
    m1, v1 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    c2 = 1 - beta2**t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / c2
    r = sp.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    scale = r * sp.sqrt(c2) / (sp.sqrt(v1) + eps) if rectified else sp.Integer(1)
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
            "weight_decay": weight_decay,
        },
        outputs={"theta": start - lr * m1 / (1 - beta1**t) * scale, "exp_avg": m1, "exp_avg_sq": v1},
        step=k,
        where={},
        rational={},
        steps=(9, 99) if rectified else (0, 1),
    )


def cases() -> list[Case]:
    """Every combination of switches, on either side."""
    return [
        Case(
            f"RAdam(decoupled={decoupled}, maximize={maximize}), rho {'>' if rectified else '<='} 5",
            RAdam(weight_decay=0.1, decoupled_weight_decay=decoupled, maximize=maximize),
            radam(-1 if maximize else 1, decoupled, rectified),
            points=RECTIFIABLE,
        )
        for decoupled in (False, True)
        for maximize in (False, True)
        for rectified in (False, True)
    ]


def prove() -> list[str]:
    """Compare every derivative; return the statements."""
    proved = Statements()
    for case in cases():
        check_float64(proved, case.label, case.optimizer, case.references())
    return proved


if __name__ == "__main__":
    run(prove)
