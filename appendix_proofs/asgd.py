"""Averaged SGD, as in `torch.optim.ASGD`.

    g = ±G + w·theta,   theta' = theta·(1 - lambd·eta) - eta·g,   ax' = ax + mu·(theta' - ax)
    eta' = lr / (1 + lambd·lr·t)^alpha,   mu' = 1 / max(1, t - t0)

lr reaches theta by way of eta alone, one step later: without the state's adjoint its derivative would be 0.

The Jacobian is sympy's, of these equations; no formula of the pullback enters. It is evaluated with 50 digits and
compared with the shipped step and pullback in float64, to the rounding that the condition of each entry allows.
"""

from __future__ import annotations

from appendix_proofs.shipped import Case, check_float64
from appendix_proofs.symbolic import G, Rule, Statements, k, lr, positive, real, run, theta, weight_decay
from gimli_core.optimizers import ASGD

eta, mu, lambd, alpha = positive("eta mu lambd alpha")
ax, t0 = real("ax t0")


def asgd(sign: int) -> Rule:
    """The equations above for one scalar, at points where t - t0 > 1."""
    t = k + 1
    moved = theta * (1 - lambd * eta) - eta * (sign * G + weight_decay * theta)
    return Rule(
        inputs={
            "G": G, "theta": theta, "eta": eta, "mu": mu, "ax": ax, "lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0,
            "weight_decay": weight_decay,
        },
        outputs={
            "theta": moved, "eta": lr / (1 + lambd * lr * t) ** alpha, "mu": 1 / (t - t0), "ax": ax + mu * (moved - ax),
        },
        step=k, where={}, rational={}, steps=(0, 1, 9),
    )  # fmt: skip


def cases() -> list[Case]:
    """Both signs."""
    return [
        Case(f"ASGD(maximize={up}), t - t0 > 1", ASGD(weight_decay=0.1, maximize=up), asgd(-1 if up else 1))
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
