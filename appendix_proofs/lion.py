"""Lion (Chen et al. 2023).

    g = ±G,   c = beta1·m + (1 - beta1)·g,   theta' = theta·(1 - lr·w) - lr·sign(c),   m' = beta2·m + (1 - beta2)·g

Away from c = 0 sign(c) is constant: with s = sign(c) held, the equations are smooth, and ∂theta'/∂G = 0.

The Jacobian is sympy's, of these equations; no formula of the pullback enters. It is evaluated with 50 digits and
compared with the shipped step and pullback in float64, to the rounding that the condition of each entry allows.
"""

from __future__ import annotations

from appendix_proofs.shipped import Case, check_float64
from appendix_proofs.symbolic import G, Rule, Statements, beta1, beta2, k, lr, m, run, theta, weight_decay
from gimli_core.optimizers import Lion


def lion(sign: int, s: int) -> Rule:
    """The equations above for one scalar, where sign(c) = s."""
    return Rule(
        inputs={
            "G": G,
            "theta": theta,
            "exp_avg": m,
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": weight_decay,
        },
        outputs={"theta": theta * (1 - lr * weight_decay) - lr * s, "exp_avg": beta2 * m + (1 - beta2) * sign * G},
        step=k,
        where={},
        rational={},
        steps=(0,),
    )


def cases() -> list[Case]:
    """Both signs of c, both of G; G and m have the sign that makes c's."""
    size = (0.5, 0.25, 1.5, 2.0, 1e-4, 3.0, 0.1)
    return [
        Case(
            f"Lion(maximize={up}), sign(c) = {s}",
            Lion(weight_decay=0.1, maximize=up),
            lion(-1 if up else 1, s),
            points={"G": tuple((-s if up else s) * x for x in size), "exp_avg": tuple(s * x for x in size)},
        )
        for s in (1, -1)
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
