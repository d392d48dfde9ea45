"""The derivative of Adam, AdamW and Adagrad where the gradient and the second moment are zero.

All three subtract a·n / (ρ + eps) from theta, with eps > 0 and

                numerator n                 root ρ                                              a
    Adagrad     g                           sqrt(x + g²)                                        lr / (1 + k·lr_decay)
    Adam(W)     beta1·m + (1 - beta1)·g     sqrt(beta2·v + (1 - beta2)·g²) / sqrt(1 - beta2^t)  lr / (1 - beta1^t)

(under amsgrad ρ = sqrt(max(x, v')) / sqrt(1 - beta2^t)). As a function of g, ρ = sqrt(ρ0² + q²·g²) with q = 1 for
Adagrad and q = sqrt((1 - beta2)/(1 - beta2^t)) for Adam. At g = 0 and a second moment of zero ρ = 0, and the chain
rule has a factor 1/ρ = ∞ in it.

Theorem 1 (n = 0 there). The update is differentiable at n = ρ = 0 all the same, jointly in g, m and the second
moment >= 0, with derivative -(a/eps)·dn. For

    -a·n/(ρ + eps) = -(a/eps)·n + R,   R = a·n·ρ / (eps·(ρ + eps)),   |R| <= (a/eps²)·|n|·ρ,

and ρ tends to 0. So ∂theta'/∂G = -lr/eps for Adagrad and for Adam's step from zero state (its bias correction cancels:
(1 - beta1)/c1 = 1 at t = 1), and -lr·(1 - beta1)/(c1·eps) at step t; every derivative by v, x, lr, lr_decay, beta1,
beta2 and eps is zero (but AdamW's own ∂theta'/∂lr = -w·theta).

Theorem 2 (what vanishes). The chain rule's second term, through ρ, is a·n·q²·g / (ρ·(ρ + eps)²). As q·|g| <= ρ it is at
most a·|n|·q/eps² and tends to 0 with n. Taking 1/ρ as 0 at ρ = 0 leaves the first term, which is the derivative.

Theorem 3 (n != 0 there: a warm first moment). The update has a kink at g = 0: its one-sided derivatives are

    -a·(1 - beta1)/eps ± a·n·q/eps²,

and the same choice gives their mean. By v itself, and by beta2 at beta2 = 0, there is then no finite derivative (the
one-sided one is infinite, with the sign of n); the engine returns 0 there.

Theorem 4 (a dead unit). With G_j = 0 for all of J Adam steps from zero state, theta_J is differentiable in G_0 with
dtheta_J/dG_0 = -(lr/eps)·Σ_{t=1..J} (1 - beta1)·beta1^(t-1)/(1 - beta1^t): the chained derivative is the limit of
the whole.

Cited by NOTE [derivative at zero].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import sympy as sp
import torch
from sympy import Expr, Symbol

from appendix_proofs import adagrad, adam, adamw, amsgrad
from appendix_proofs.exact import Exact
from appendix_proofs.shipped import UNIT, pull_symbols
from appendix_proofs.symbolic import (
    C,
    G,
    M,
    Rule,
    Statements,
    beta1,
    beta2,
    eps,
    eps_root,
    k,
    lr,
    lr_decay,
    m,
    positive,
    run,
    theta,
    v,
    vanishes,
    weight_decay,
    without,
    x,
)
from gimli_core.optimizers import Adagrad, Adam, AdamW, Optimizer

a, h, rho = positive("a h rho")
zero = sp.Integer(0)


class AtZero(NamedTuple):
    """A shipped optimizer at g = 0 with second moment and numerator zero, and its slope dtheta'/dg there."""

    label: str
    optimizer: Optimizer
    rule: Rule
    at: dict[Symbol, Expr]
    slope: Expr


def at_zero() -> Iterator[AtZero]:
    """Every rule, with decay and without; a coupled decay has g = 0 where G = -σ·w·theta."""
    adam_slope = -lr * (1 - beta1) / ((1 - beta1 ** (k + 1)) * eps)
    adagrad_slope = -lr / ((1 + k * lr_decay) * eps)
    for maximize in (False, True):
        sign = -1 if maximize else 1
        coupled = {G: -sign * weight_decay * theta}
        moments = {m: zero, v: zero, M: zero}
        mark = f"(weight_decay, maximize={maximize})"
        options: dict[str, Any] = {"weight_decay": 0.1, "maximize": maximize}
        yield AtZero(f"Adagrad{mark}", Adagrad(**options), adagrad.adagrad(sign), coupled | {x: zero}, adagrad_slope)
        plain = without(adam.adam(sign), eps_root), without(adamw.adamw(sign), eps_root)
        yield AtZero(f"Adam{mark}", Adam(**options), plain[0], coupled | moments, adam_slope)
        yield AtZero(f"AdamW{mark}", AdamW(**options), plain[1], {G: zero} | moments, adam_slope)
        learned = Adam(eps_root=0.1, **options)  # its term is kept, and its value is 0
        at = coupled | moments | {eps_root: zero}
        yield AtZero(f"Adam(eps_root = 0, maximize={maximize})", learned, adam.adam(sign), at, adam_slope)
        for kind, rule, gradient in (
            (Adam, amsgrad.amsgrad(sign, "tie"), coupled),
            (AdamW, adamw.decoupled(amsgrad.amsgrad(sign, "tie")), {G: zero}),
        ):
            label = f"{kind.__name__}(amsgrad, weight_decay, maximize={maximize})"
            kept = without(rule, eps_root)
            yield AtZero(label, kind(amsgrad=True, **options), kept, gradient | moments, adam_slope)


def prove_remainder(proved: Statements) -> None:
    """Theorem 1: the remainder, its bound, and that the equations are of this form."""
    n = Symbol("n", real=True)
    R = a * n * rho / (eps * (rho + eps))
    proved.equal(
        "-a·n/(ρ + eps) = -(a/eps)·n + R with R = a·n·ρ/(eps·(ρ + eps))", -a * n / (rho + eps), R - a * n / eps
    )
    slack = a * rho / eps**2 - R / n  # >= 0, as a quotient of products of positive numbers
    proved.equal(
        "(a/eps²)·ρ - R/n = a·ρ²/(eps²·(ρ + eps)), so |R| <= (a/eps²)·|n|·ρ", slack, a * rho**2 / (eps**2 * (rho + eps))
    )
    proved.equal(
        "R/n tends to 0 with ρ: the update is differentiable, with slope -a/eps in n", sp.limit(R / n, rho, 0), 0
    )
    of_g = {weight_decay: zero, eps_root: zero}
    form = adagrad.adagrad(1).outputs["theta"].xreplace(of_g) - theta
    claim = -lr / (1 + k * lr_decay) * G / (sp.sqrt(x + G**2) + eps)
    proved.equal("Adagrad has this form, with n = g, ρ = sqrt(x + g²)", form, claim)
    n_adam, root_adam = beta1 * m + (1 - beta1) * G, sp.sqrt(beta2 * v + (1 - beta2) * G**2) / C
    form = adam.adam(1).outputs["theta"].xreplace(of_g) - theta
    claim = -lr / (1 - beta1 ** (k + 1)) * n_adam / (root_adam + eps)
    proved.equal("Adam has this form, with n = m', ρ = sqrt(v'/(1 - beta2^t))", form, claim)
    slope = -lr * (1 - beta1) / ((1 - beta1 ** (k + 1)) * eps)
    proved.equal(
        "Adam: at t = 1 the slope -lr·(1 - beta1)/(c1·eps) is -lr/eps, for every beta1", slope.subs(k, 0), -lr / eps
    )


def prove_limits(proved: Statements) -> None:
    """Theorem 1 by sympy's limits: the difference quotients of one step from zero state, from both sides."""
    rules = {"Adagrad": (adagrad.adagrad(1), {x: zero}), "Adam": (adam.adam(1), {m: zero, v: zero})}
    for label, (rule, state) in rules.items():
        step = rule.outputs["theta"].xreplace({weight_decay: zero, theta: zero, k: zero, eps_root: zero} | state)
        for side in (1, -1):
            quotient = sp.simplify((step.subs(G, side * h) - 0) / (side * h))
            found = sp.limit(quotient, h, 0)
            way = "above" if side == 1 else "below"
            proved.equal(
                f"{label}, t = 1 from zero state: lim (theta'(h) - theta'(0))/h from {way} = -lr/eps", found, -lr / eps
            )


def prove_vanishing(proved: Statements) -> None:
    """Theorem 2: the term that the infinite factor stands in."""
    g = Symbol("g", real=True)
    rho_0, q, n = positive("rho_0 q n")
    for label, second, by_g in (
        ("Adagrad", x + G**2, 1),
        ("Adam", (beta2 * v + (1 - beta2) * G**2) / C**2, (1 - beta2) / C**2),
    ):
        proved.equal(f"{label}: ρ² = ρ0² + q²·g² with q² = {by_g}", second - by_g * G**2, second.subs(G, 0))
    through_rho = sp.diff(-a * n / (sp.sqrt(rho_0**2 + q**2 * g**2) + eps), g)  # n held
    term = a * n * q**2 * g / (rho * (rho + eps) ** 2)
    at = {rho_0: sp.sqrt(rho**2 - q**2 * g**2)}
    proved.equal("the term through ρ is a·n·q²·g/(ρ·(ρ + eps)²)", through_rho.subs(at), term)
    slack = a * n * q / eps**2 - term.subs(g, rho / q / (1 + h))  # q·g = ρ/(1 + h) <= ρ, for any h >= 0
    proved.holds("for 0 < q·g <= ρ, n > 0 it is below a·n·q/eps²: it tends to 0 with n", sp.factor(slack).is_positive)


def prove_kink(proved: Statements) -> None:
    """Theorem 3."""
    (q,) = positive("q")
    mean, jump = -a * (1 - beta1) / eps, a * beta1 * m * q / eps**2  # n = beta1·m at g = 0

    def moved(g: Expr) -> Expr:
        return -a * (beta1 * m + (1 - beta1) * g) / (q * sp.Abs(g) + eps)

    right, left = (sp.limit(sp.together((moved(side * h) - moved(zero)) / (side * h)), h, 0) for side in (1, -1))
    proved.equal("Adam, v = 0, m != 0: the right derivative is -a·(1 - beta1)/eps + a·n·q/eps²", right, mean + jump)
    proved.equal("and the left derivative is -a·(1 - beta1)/eps - a·n·q/eps²", left, mean - jump)
    shipped = pull_symbols(
        Adam(), without(adam.adam(1), eps_root), {G: zero, v: zero, weight_decay: zero}, {"theta": sp.Integer(1)}
    )
    of_adam = {a: lr / (1 - beta1 ** (k + 1))}
    proved.equal("the shipped ∂theta'/∂G is their mean", shipped["G"], ((right + left) / 2).subs(of_adam))
    n = positive("n")[0]
    quotient = (-a * n / (sp.sqrt(h) + eps) + a * n / eps) / h  # h = v'/c2 grows with v, and with beta2 at beta2 = 0
    proved.holds("by ρ² at 0, n > 0, the difference quotient tends to +∞", sp.limit(quotient, h, 0) == sp.oo)
    proved.equal("the shipped ∂theta'/∂v there is 0", shipped["exp_avg_sq"], 0)


def prove_dead_unit(proved: Statements, J: int = 3) -> None:
    """Theorem 4, against the shipped Adam chained on symbols and against the limit of the composed steps."""
    optimizer: Any = Adam()
    values = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "eps_root": 0, "weight_decay": 0}
    hyper = {"w": {name: Exact(value) for name, value in values.items()}}
    none = {"w": Exact(0)}
    B, S = {"w": Exact(1)}, {"exp_avg": none, "exp_avg_sq": none}
    for j in reversed(range(J)):
        state = {"step": Exact(j), "exp_avg": none, "exp_avg_sq": none}
        pulled = optimizer.pullback(none, state, none, hyper, B, S, [])
        B, S = pulled.B, pulled.S
    bias = [1 - beta1**t for t in range(1, J + 1)]
    closed = -lr / eps * sum((1 - beta1) * beta1**t / bias[t] for t in range(J))
    proved.equal(
        f"a dead unit, J = {J}: the shipped Adam, chained, has dtheta_J/dG_0 of Theorem 4", pulled.V["w"].expr, closed
    )
    roots = positive(f"q:{J}")  # ρ_t = q_t·|h|, since v_t = (1 - beta2)·beta2^(t-1)·h²
    moved = sum(-lr / bias[t] * (1 - beta1) * beta1**t * h / (roots[t] * h + eps) for t in range(J))
    proved.equal(
        f"a dead unit, J = {J}: so has the limit of [theta_J(h) - theta_J(0)]/h", sp.limit(moved / h, h, 0), closed
    )


def prove_shipped(proved: Statements) -> None:
    """The shipped pullbacks at g = 0 and zero moments: on symbols all of Theorem 1, in float64 no nan."""
    for label, optimizer, rule, at, slope in at_zero():
        shipped = pull_symbols(optimizer, rule, at, {"theta": sp.Integer(1)})
        sign = rule.where["s"]
        decoupled = isinstance(optimizer, AdamW)
        claims = dict.fromkeys(rule.inputs, zero) | {
            "G": sign * slope,
            "theta": 1 - lr * weight_decay if decoupled else 1 + weight_decay * slope,
            "weight_decay": -lr * theta if decoupled else theta * slope,
        }
        if decoupled:
            claims["lr"] = -weight_decay * theta
        if "exp_avg" in rule.inputs:
            claims["exp_avg"] = -lr * beta1 / ((1 - beta1 ** (k + 1)) * eps)
        for name, claim in claims.items():
            if not vanishes(shipped[name] - claim):
                raise AssertionError(
                    f"{label} at zero: the shipped ∂theta'/∂{name} is {sp.factor(shipped[name])}, not {claim}"
                )
        proved.append(
            f"{label} at zero: all {len(claims)} shipped derivatives of theta', on symbols, are those of Theorem 1"
        )
    w = {"w": torch.zeros(2, dtype=torch.float64)}
    for kind in (Adagrad, Adam, AdamW):
        jacobians = kind(lr=0.1, eps=1e-8).jacobians(w)
        finite = all(torch.isfinite(d["w"]).all() for of in jacobians.values() for d in of.values() if d)
        proved.holds(f"{kind.__name__} in float64 at zero: every derivative is finite", finite)
        error = abs(jacobians["theta"]["G"]["w"][0].item() * 1e-8 / -0.1 - 1)
        proved.holds(f"{kind.__name__} in float64 at zero: ∂theta'/∂G = -lr/eps to 4 roundings", error <= 4 * UNIT)


def prove() -> list[str]:
    """Prove the four theorems; return their statements."""
    proved = Statements()
    prove_remainder(proved)
    prove_limits(proved)
    prove_vanishing(proved)
    prove_kink(proved)
    prove_dead_unit(proved)
    prove_shipped(proved)
    return proved


if __name__ == "__main__":
    run(prove)
