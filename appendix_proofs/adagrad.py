"""Adagrad, as in `torch.optim.Adagrad`, with learning-rate decay, weight decay and maximize.

Equations, with t = k + 1 the number of this step and σ = -1 under maximize, else 1:

    g      = σ·G + w·theta                 w = weight_decay
    x'     = x + g²                        sum; x_0 = initial_accumulator_value
    a      = lr / (1 + k·lr_decay)
    theta' = theta - a·g / (sqrt(x') + eps)

Theorem 1. Where x' > 0 the update is differentiable. With r = sqrt(x'), d = r + eps and

    Q = a·g / (2·d²·r)                     = ∂theta'/∂x
    D = -a/d + 2·g·Q                       = ∂theta'/∂g = -a·(x/r + eps) / d²

the derivatives are those of `CLOSED`; in particular O = ∂theta'/∂G = σ·D, which is negative times σ
for every g: a larger gradient never makes a smaller step. (x' = 0 is the subject of zero_gradient.py.)

Theorem 2. The initial accumulator value v0 enters through ∂x_0/∂v0 = 1 alone, so that A_v0 = S_0; after J steps
x_J = v0 + Σ_j g_j².

The paper's Appendix A.2 as it is printed, without eps: appendix_proofs/printed_appendix.py.
Source of the rule: the documentation of `torch.optim.Adagrad`.
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp
import torch
from sympy import Symbol

from appendix_proofs.shipped import Case, check_shipped
from appendix_proofs.symbolic import (
    G,
    Rule,
    Statements,
    eps,
    k,
    lr,
    lr_decay,
    prove_closed_forms,
    root,
    run,
    sigma,
    theta,
    weight_decay,
    x,
)
from gimli_core.optimizers import Adagrad

CLOSED = {
    "theta": {
        "G": "s*D",
        "theta": "1 + w*D",
        "weight_decay": "theta*D",
        "sum": "Q",
        "lr": "-g/(d*(1 + k*lr_decay))",
        "lr_decay": "a*g*k/(d*(1 + k*lr_decay))",
        "eps": "a*g/d**2",
    },
    "sum": {"G": "2*s*g", "theta": "2*w*g", "weight_decay": "2*theta*g", "sum": "1"},
}


def adagrad(sign: int | Symbol) -> Rule:
    """The equations above for one scalar, σ = `sign`."""
    g = sign * G + weight_decay * theta
    x1 = x + g**2
    a = lr / (1 + k * lr_decay)
    d = sp.sqrt(x1) + eps
    Q = a * g / (2 * d**2 * sp.sqrt(x1))
    where = {"s": sp.sympify(sign), "w": weight_decay, "k": k, "g": g, "a": a, "d": d, "Q": Q, "D": -a / d + 2 * g * Q}
    return Rule(
        inputs={
            "G": G,
            "theta": theta,
            "sum": x,
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "eps": eps,
        },
        outputs={"theta": theta - a * g / d, "sum": x1},
        step=k,
        where=where,
        rational={x: root**2 - g**2},
    )


def cases() -> Iterator[Case]:
    """Every combination of Adagrad's options."""
    for maximize in (False, True):
        rule = adagrad(-1 if maximize else 1)
        yield Case(f"Adagrad(weight_decay, maximize={maximize})", Adagrad(weight_decay=0.1, maximize=maximize), rule)
        yield Case(f"Adagrad(maximize={maximize})", Adagrad(maximize=maximize), rule, {weight_decay: 0})


def prove_initial_accumulator(proved: Statements) -> None:
    """Theorem 2, and the shipped initial state with its pullback: one value for all elements, or one each."""
    v0, g_0, g_1, g_2 = sp.symbols("v0 g_0 g_1 g_2")
    accumulated = v0
    for g in (g_0, g_1, g_2):
        accumulated = adagrad(1).outputs["sum"].subs({x: accumulated, weight_decay: 0, G: g})
    proved.equal("Adagrad: x_3 = v0 + g_0² + g_1² + g_2²", accumulated, v0 + g_0**2 + g_1**2 + g_2**2)
    proved.equal("Adagrad: ∂x_3/∂v0 = 1", sp.diff(accumulated, v0), 1)
    name, optimizer = "initial_accumulator_value", Adagrad()
    w, S_0 = torch.zeros(3, dtype=torch.float64), torch.tensor([0.5, -2.0, 4.0], dtype=torch.float64)
    for value, adjoint in ((0.25, 2.5), ([0.25, 0.5, 0.0], [0.5, -2.0, 4.0])):
        hyper = {"w": {name: torch.tensor(value, dtype=torch.float64)}}
        started = optimizer.initial_state({"w": w}, hyper)["sum"]["w"]
        A = optimizer.initial_state_pullback({"sum": {"w": S_0}}, hyper, [name])["w"][name]
        kind = "one for all elements" if isinstance(value, float) else "one an element"
        proved.holds(f"Adagrad: the shipped x_0 is v0, {kind}", torch.equal(started, hyper["w"][name].expand(3)))
        proved.holds(f"Adagrad: the shipped A_v0 is S_0, {kind}", A.tolist() == adjoint)


def prove() -> list[str]:
    """Prove both theorems; return their statements."""
    proved = Statements()
    rule = adagrad(sigma)
    prove_closed_forms(proved, "Adagrad", rule, CLOSED)
    a, d, D = (rule.where[name] for name in "adD")
    at = rule.rational
    proved.equal("Adagrad: D = -a·(x/r + eps)/d²", (D + a * (x / (d - eps) + eps) / d**2).subs(at), 0)
    prove_initial_accumulator(proved)
    check_shipped(proved, cases())
    return proved


if __name__ == "__main__":
    run(prove)
