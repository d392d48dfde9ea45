"""SGD with Nesterov's look-ahead, as in `torch.optim.SGD(nesterov=True)`.

Equations, with σ = -1 under maximize, else 1:

    g      = σ·G + w·theta                 w = weight_decay
    b'     = momentum·b + c·g              momentum_buffer; c = 1 in the first step, else 1 - dampening
    d      = g + momentum·b'
    theta' = theta - lr·d

Theorem. The derivatives are those of `CLOSED`; in particular O = ∂theta'/∂G = -σ·lr·(1 + momentum·c)
and ∂theta'/∂momentum = -lr·(b' + momentum·b), since momentum stands in both equations.
The rule is defined at dampening = 0 (torch refuses another value). The shipped rule, too, is checked
there, where ∂/∂dampening is the derivative into the neighbouring rules that the equations define.

Source of the rule: the documentation of `torch.optim.SGD`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sympy import Symbol

from appendix_proofs.momentum import BUFFER, heavy_ball
from appendix_proofs.shipped import Case, check_shipped
from appendix_proofs.symbolic import (
    Rule,
    Statements,
    dampening,
    lr,
    momentum,
    prove_closed_forms,
    run,
    sigma,
    theta,
    weight_decay,
)
from gimli_core.optimizers import SGD

CLOSED = BUFFER | {
    "theta": {
        "G": "-lr*s*(1 + momentum*c)",
        "theta": "1 - lr*w*(1 + momentum*c)",
        "weight_decay": "-lr*theta*(1 + momentum*c)",
        "momentum_buffer": "-lr*momentum**2",
        "momentum": "-lr*(b1 + momentum*b)",
        "dampening": "-lr*momentum*c_y*g",
        "lr": "-g - momentum*b1",
    },
}


def nesterov(sign: int | Symbol, first: bool) -> Rule:
    """The equations above for one scalar: the buffer of momentum.py, another direction."""
    rule = heavy_ball(sign, first)
    b1 = rule.outputs["momentum_buffer"]
    return replace(rule, outputs={"theta": theta - lr * (rule.where["g"] + momentum * b1), "momentum_buffer": b1})


def cases() -> Iterator[Case]:
    """Every combination of options with Nesterov's look-ahead."""
    for first in (True, False):
        for maximize in (False, True):
            rule = nesterov(-1 if maximize else 1, first)
            label = f"SGD(nesterov, maximize={maximize}), t {'= 1' if first else '> 1'}"
            for at in ({dampening: 0}, {dampening: 0, weight_decay: 0}):
                optimizer = SGD(
                    momentum=0.9, nesterov=True, maximize=maximize, weight_decay=0.0 if weight_decay in at else 0.1
                )
                yield Case(label if weight_decay in at else f"weight_decay, {label}", optimizer, rule, at)


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    for first in (True, False):
        prove_closed_forms(proved, f"Nesterov, t {'= 1' if first else '> 1'}", nesterov(sigma, first), CLOSED)
    zero = nesterov(sigma, first=False).outputs["theta"].subs(momentum, 0)
    proved.equal(
        "Nesterov: at momentum = 0 it is plain SGD", zero, theta - lr * nesterov(sigma, first=False).where["g"]
    )
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
