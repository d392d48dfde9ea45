"""Rprop, as in `torch.optim.Rprop`.

    σ = sign(±G·prev),   size' = clamp(size·(etaplus | 1 | etaminus for σ > 0 | = 0 | < 0), min, max)
    g = 0 where σ < 0, else ±G,   theta' = theta - sign(g)·size',   prev' = g

Away from G·prev = 0 and from the bounds every case is smooth, with σ, sign(g) and the side of the bounds held.

The Jacobian is sympy's, of these equations; no formula of the pullback enters. It is evaluated with 50 digits and
compared with the shipped step and pullback in float64, to the rounding that the condition of each entry allows.
"""

from __future__ import annotations

import sympy as sp

from appendix_proofs.shipped import Case, check_float64
from appendix_proofs.symbolic import G, Rule, Statements, k, positive, real, run, theta
from gimli_core.optimizers import Rprop

size, minus, plus, low, high = positive("size minus plus low high")
(prev,) = real("prev")


def rprop(sign: int, agree: int, bound: str) -> Rule:
    """The equations above for one scalar with G > 0, where σ = `agree` and size' is within the bounds or on one."""
    raw = size * {1: plus, -1: minus}[agree]
    new = {"within": raw, "low": low, "high": high}[bound]
    g = sign * G if agree > 0 else sp.Integer(0)
    return Rule(
        inputs={
            "G": G, "theta": theta, "prev": prev, "step_size": size, "etaminus": minus, "etaplus": plus,
            "step_size_min": low, "step_size_max": high,
        },
        outputs={"theta": theta - (sign if agree > 0 else 0) * new, "prev": g, "step_size": new},
        step=k, where={}, rational={}, steps=(0,),
    )  # fmt: skip


def cases() -> list[Case]:
    """Agreeing and disagreeing signs, within the bounds and beyond either, both signs of G."""
    found = []
    for up in (False, True):
        for agree in (1, -1):
            for bound, (low_at, high_at) in {"within": (1e-6, 50.0), "low": (20.0, 50.0), "high": (1e-6, 1e-3)}.items():
                points = {
                    "G": (0.5, 0.25, 1.5, 2.0, 1e-4, 3.0, 0.1),
                    "prev": tuple((-1 if up else 1) * agree * x for x in (0.5, 0.25, 1.0, 1.0, 2.0, 3.0, 0.4)),
                    "step_size_min": (low_at,) * 7,
                    "step_size_max": (high_at,) * 7,
                }
                label = f"Rprop(maximize={up}), signs {'agree' if agree > 0 else 'differ'}, {bound}"
                found.append(Case(label, Rprop(maximize=up), rprop(-1 if up else 1, agree, bound), points=points))
    return found


def prove() -> list[str]:
    """Compare every derivative; return the statements."""
    proved = Statements()
    for case in cases():
        check_float64(proved, case.label, case.optimizer, case.references())
    return proved


if __name__ == "__main__":
    run(prove)
