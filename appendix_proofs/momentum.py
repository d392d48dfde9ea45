"""SGD with momentum, as in `torch.optim.SGD`, with dampening, weight decay and maximize.

Equations, with σ = -1 under maximize, else 1:

    g      = σ·G + w·theta                 w = weight_decay
    b'     = momentum·b + c·g              momentum_buffer; c = 1 in the first step, else 1 - dampening
    theta' = theta - lr·b'

Theorem. The derivatives are those of `CLOSED`. The first step knows no dampening, and from the
initial buffer b = 0 it is torch's b' = g. The state carries a derivative on: with
∂theta'/∂b = -lr·momentum and ∂b'/∂G = σ·c, both nonzero, the adjoint S of the buffer is not zero before
the last step, whatever theta does (augmented_state.py says what it is worth).

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
    b,
    dampening,
    k_later,
    lr,
    momentum,
    prove_closed_forms,
    run,
    sigma,
    theta,
    weight_decay,
)
from gimli_core.optimizers import SGD

INPUTS = {
    "G": G,
    "theta": theta,
    "momentum_buffer": b,
    "lr": lr,
    "momentum": momentum,
    "dampening": dampening,
    "weight_decay": weight_decay,
}

# Derivatives of the buffer, shared with nesterov.py; c_y = dc/d dampening.
BUFFER = {
    "momentum_buffer": {
        "G": "s*c",
        "theta": "w*c",
        "weight_decay": "theta*c",
        "momentum_buffer": "momentum",
        "momentum": "b",
        "dampening": "c_y*g",
    }
}

CLOSED = BUFFER | {
    "theta": {
        "G": "-lr*s*c",
        "theta": "1 - lr*w*c",
        "weight_decay": "-lr*theta*c",
        "momentum_buffer": "-lr*momentum",
        "momentum": "-lr*b",
        "dampening": "-lr*c_y*g",
        "lr": "-b1",
    },
}


def heavy_ball(sign: int | Symbol, first: bool) -> Rule:
    """The equations above for one scalar, σ = `sign`, in the first step or a later one."""
    g = sign * G + weight_decay * theta
    c = sp.Integer(1) if first else 1 - dampening
    b1 = momentum * b + c * g
    return Rule(
        inputs=INPUTS,
        outputs={"theta": theta - lr * b1, "momentum_buffer": b1},
        step=sp.Integer(0) if first else k_later,
        where={
            "s": sp.sympify(sign),
            "w": weight_decay,
            "g": g,
            "b": b,
            "b1": b1,
            "c": c,
            "c_y": sp.diff(c, dampening),
        },
        rational={},
        steps=(0,) if first else (1, 9, 999),
    )


def cases() -> Iterator[Case]:
    """Every combination of options with momentum and without Nesterov's look-ahead."""
    for first in (True, False):
        for maximize in (False, True):
            rule = heavy_ball(-1 if maximize else 1, first)
            label = f"SGD(momentum, dampening, maximize={maximize}), t {'= 1' if first else '> 1'}"
            optimizer = SGD(momentum=0.9, dampening=0.1, weight_decay=0.1, maximize=maximize)
            yield Case(f"weight_decay, {label}", optimizer, rule)
            yield Case(label, SGD(momentum=0.9, dampening=0.1, maximize=maximize), rule, {weight_decay: 0})


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    first, later = heavy_ball(sigma, first=True), heavy_ball(sigma, first=False)
    prove_closed_forms(proved, "momentum, t = 1", first, CLOSED)
    prove_closed_forms(proved, "momentum, t > 1", later, CLOSED)
    b1 = first.outputs["momentum_buffer"]
    proved.equal("momentum, t = 1: b' = g from b = 0, for every dampening", b1.subs(b, 0), first.where["g"])
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
