"""Section 2.4 as printed: the chain rule along the steps, and the gradient paths that make up ∇_φ L_val.

Notation: θ* = θ_{T+1}; O_t = ∂opt_t/∂G, H_t = ∇²ℓ_t, M_t = ∇_φ ∇_θ ℓ_t; D_t = ∂opt_t/∂θ + O_t·H_t, which is ∇_{θ_t}
θ_{t+1}.

Theorem 1 (the first list). For a rule without state, or the augmented state in place of θ, the chain rule holds as
printed, later factors on the left. So ∇_{θ_t} L_val = ∇L_val·D_T ⋯ D_t for every t from 0 on: what must exist is every
factor, D_0 for t = 0 included. Of one step of SGD on ℓ = (2/3)·|θ|^(3/2) and L_val = θ it does not exist at θ_0 = 0.

Theorem 2 (the paths). ∇_φ L_val = Σ_{t=1..T+1} (∇_{θ_t} L_val)·∂θ_t/∂φ, where ∂θ_t/∂φ holds θ_{t-1}. The range [1, T]
that is printed leaves out the last step's own path, (∇_{θ*} L_val)·∂θ_{T+1}/∂φ: of one step (T = 0) all of it. With
total derivatives ∇_φ θ_t the sum counts paths twice. Where θ_0 depends on φ (MAML), t = 0 is a path as well; else
that path is 0, and {0, …, T}, which is printed before the lists, leaves out the same as [1, T].

Theorem 3 (the second list). ∇_{φ_loss} θ_t = (∇_{G_{t-1}} θ_t)·(∇_{φ_loss} G_{t-1}) holds with θ_{t-1} held. The
total derivative has one more term, (∂opt/∂θ)·∇_{φ_loss} θ_{t-1}; for ∇_{φ_opt} θ_t it is D_{t-1}·∇_{φ_opt} θ_{t-1},
for which IIIa alone is not enough.
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy import Matrix

from appendix_proofs.printed import Chain, Printed, beside, lam, phi
from appendix_proofs.requirements import one_sided
from appendix_proofs.symbolic import Statements, real, run

PRINTED = (
    Printed(
        "Section 2.4, before the lists",
        "(∇_{θ_t} L_val(θ*))·(∇_φ θ_t) for t ∈ {0, …, T}",
        "misprint",
        "t ∈ {1, …, T+1}, and t = 0 only where θ_0 depends on φ; the end of the proof has [1, T] instead",
    ),
    Printed(
        "Section 2.4, first list, item 1",
        "∇_{θ_t} L_val(θ*) = (∇_{θ*} L_val(θ*))·(∇_{θ_t} θ*), ∇_{θ_t} θ* = ∇_{θ_t} θ_{T+1}",
        "holds if",
        "θ* stands for θ_{T+1}, and the rule has no state, or θ is the augmented state",
    ),
    Printed(
        "Section 2.4, first list, item 2",
        "∇_{θ_t} θ_{T+1} = (∇_{θ_{t+1}} θ_{T+1})·(∇_{θ_t} θ_{t+1})",
        "holds if",
        "the rule has no state, or θ is the augmented state",
    ),
    Printed(
        "Section 2.4, after the first list",
        "∇_{θ_t} L_val(θ*) exists for t ∈ {0, …, T}",
        "holds if",
        "I, II and ∇²ℓ_i for every i ∈ [t, T]: it is ∇L_val·Π_{i=t..T} (∂opt_i/∂θ + O_i·∇²ℓ_i)",
    ),
    Printed(
        "Section 2.4, second list, item 1",
        "∇_{φ_opt} θ_t exists by requirement IIIa",
        "holds if",
        "θ_{t-1} and G_{t-1} are held; the total derivative needs II and ∇²ℓ as well",
    ),
    Printed(
        "Section 2.4, second list, item 2",
        "∇_{φ_loss} θ_t = (∇_{G_{t-1}} θ_t)·(∇_{φ_loss} G_{t-1})",
        "holds if",
        "θ_{t-1} is held; the total derivative has (∂opt/∂θ)·∇_{φ_loss} θ_{t-1} besides",
    ),
    Printed(
        "Section 2.4, the gradient paths",
        "∇_φ L_val(θ*) is composed of (∇_{θ_t} L_val(θ*))·(∇_φ θ_t) for all t ∈ [1, T]",
        "misprint",
        "t ∈ [1, T+1], with θ_{t-1} held in ∇_φ θ_t; and t = 0 where θ_0 depends on φ",
    ),
)


def item_1(at_end: Any, onward: Any) -> Any:
    """∇_{θ_t} L_val from ∇_{θ*} L_val and ∇_{θ_t} θ*."""
    return at_end * onward


def item_2(later: Any, one: Any) -> Any:
    """∇_{θ_t} θ_{T+1} from ∇_{θ_{t+1}} θ_{T+1} and ∇_{θ_t} θ_{t+1}."""
    return later * one


def path(B: Any, moved: Any) -> Any:
    """One gradient path, of ∇_{θ_t} L_val and ∇_φ θ_t."""
    return B * moved


def loss_part(O: Any, of_G: Any) -> Any:  # noqa: E741 - the paper's letter
    """∇_{φ_loss} θ_t from ∇_{G_{t-1}} θ_t and ∇_{φ_loss} G_{t-1}."""
    return O * of_G


FORMULAS = (item_1, item_2, path, loss_part)


def prove_chain_rule(proved: Statements, T: int, n: int) -> None:
    """Theorem 1: ∇_{θ_t} θ_{T+1} is sympy's Jacobian of the nested steps."""
    J = T + 1
    whole = Chain(range(J), n)

    def onward(t: int) -> Matrix:
        rest = Chain(range(t, J), n)
        at = dict(zip(rest.start, whole.points[t], strict=True))
        return Matrix(rest.points[-1]).jacobian(Matrix(rest.start)).xreplace(at)

    adjoints = [beside(J, n, t) for t in range(J)]
    for t in range(J):
        label = f"T = {T}, t = {t}, θ in R^{n}"
        first, second = (f"Section 2.4, first list, item {number}" for number in (1, 2))
        proved.equal(f"{first}: {label}", item_1(whole.B, onward(t)), adjoints[t])
        one = whole.local[t].theta + whole.local[t].O * whole.local[t].H
        proved.equal(f"{second}: {label}, ∇_(θ_t) θ_(t+1) = ∂opt/∂θ + O·H", item_2(onward(t + 1), one), onward(t))
    product = whole.B
    for t in reversed(range(J)):
        product = product * (whole.local[t].theta + whole.local[t].O * whole.local[t].H)
        label = f"T = {T}, t = {t}, θ in R^{n}"
        proved.equal(f"Section 2.4, after the first list: {label}: ∇L_val·D_T ⋯ D_t", product, adjoints[t])


def prove_paths(proved: Statements, T: int, n: int) -> None:
    """Theorems 2 and 3, their equalities, for undefined opt and ℓ."""
    J, whole = T + 1, Chain(range(T + 1), n)
    label = f"T = {T}, θ in R^{n}"
    direct = {phi: [step.phi for step in whole.local], lam: [loss_part(step.O, step.M) for step in whole.local]}
    for by, name in ((phi, "φ_opt"), (lam, "φ_loss")):
        where = "Section 2.4, the gradient paths"
        paths = [path(beside(J, n, t), direct[by][t - 1]) for t in range(1, J + 1)]
        total = whole.total([by])
        proved.equal(
            f"{where}: {label}: over t = 1 … T+1 they add up to ∇_{name} L_val", sum(paths, sp.zeros(1)), total
        )
        missed = total - sum(paths[:-1], sp.zeros(1))
        claim = whole.B * direct[by][-1]
        proved.equal(f"{where}: {label}: over [1, T], as printed, they miss B·∂θ_(T+1)/∂{name}", missed, claim)
        number = 1 if by == phi else 2
        where = f"Section 2.4, second list, item {number}"
        for t in range(1, J + 1):
            step = whole.local[t - 1]
            before, after = (Matrix([sp.diff(each, by) for each in whole.points[at]]) for at in (t - 1, t))
            further = (step.theta + step.O * step.H) * before
            proved.equal(f"{where}: {label}, t = {t}: with θ_(t-1) held; else D_(t-1)·∇θ_(t-1) besides",
                         direct[by][t - 1] + further, after)  # fmt: skip


def prove_start(proved: Statements, T: int) -> None:
    """Theorem 2, t = 0: θ_0 = θ(φ) for an undefined function, or a θ_0 that does not depend on φ."""
    J, whole = T + 1, Chain(range(T + 1))
    where, start = "Section 2.4, before the lists", sp.Function("theta_start")(phi)
    (theta_0,) = whole.start
    at = {theta_0: start}
    B = [beside(J, 1, t)[0] for t in range(J + 1)]
    paths = [path(B[t], whole.local[t - 1].phi[0]).subs(at) for t in range(1, J + 1)]
    first = path(B[0], sp.diff(start, phi)).subs(at)
    total = sp.diff(whole.L_val.subs(at), phi)
    proved.equal(f"{where}: T = {T}: θ_0 = θ(φ): t = 0 … T+1 add up to ∇_φ L_val", first + sum(paths), total)
    proved.equal(f"{where}: T = {T}: else the path t = 0 is 0", path(B[0], sp.diff(theta_0, phi)), 0)
    missed = total - first - sum(paths[:-1])
    claim = (whole.B[0] * whole.local[-1].phi[0]).subs(at)
    proved.equal(f"{where}: T = {T}: over {{0, …, T}}, as printed, they miss B·∂θ_(T+1)/∂φ", missed, claim)


def prove_kink(proved: Statements) -> None:
    """Theorem 1, where ∇²ℓ_0 is missing."""
    (x,), rate = real("x"), sp.Rational(1, 10)
    theta_1 = x - rate * sp.sign(x) * sp.sqrt(sp.Abs(x))  # G of ℓ = (2/3)·|θ|^(3/2)
    proved.holds(
        "Section 2.4, after the first list: ℓ = (2/3)·|θ|^(3/2), SGD, L_val = θ_1: at θ_0 = 0 its quotient is -∞",
        one_sided(theta_1, x, sp.Integer(0)) == (-sp.oo,) * 2,
    )


def prove_numbers(proved: Statements) -> None:
    """Theorems 2 and 3, what goes wrong: SGD with lr = 1/10 on ℓ = (θ - φ)²/2, L_val = θ, two steps (T = 1)."""
    point, rate = [sp.Symbol("theta_0")], sp.Rational(1, 10)
    for _ in range(2):
        point.append(point[-1] - rate * (point[-1] - phi))
    totals = [sp.diff(each, phi) for each in point]
    B = [sp.diff(point[2], point[0]) / sp.diff(point[t], point[0]) for t in range(3)]
    setting = "SGD, lr = 0.1, ℓ = (θ - φ)²/2, L_val = θ, T = 1"
    where = "Section 2.4, the gradient paths"
    doubled, printed = path(B[1], totals[1]) + path(B[2], totals[2]), path(B[1], rate)
    true = totals[2]
    for what, value in (("with total ∇_φ θ_t", doubled), ("over [1, T]", printed)):
        proved.holds(f"{where}: {setting}: {what} {float(value):.2f}, true is {float(true):.2f}", value != true)
    corrected = path(B[1], rate) + path(B[2], rate)
    proved.equal(f"{where}: {setting}: over [1, T+1], θ_(t-1) held, {float(true):.2f}", corrected, true)
    value = loss_part(-rate, sp.diff(point[1] - phi, phi))
    statement = f"Section 2.4, second list, item 2: {setting}: with total derivatives {float(value):.2f}"
    proved.holds(f"{statement}, true is {float(true):.2f}", value != true)
    proved.equal(f"{statement}, which misses ∂opt/∂θ·∇_φ θ_1 = 0.10", true - value, totals[1])


def prove() -> list[str]:
    """Prove the three theorems; return their statements."""
    proved = Statements()
    for T, n in ((0, 1), (1, 1), (2, 1), (1, 2)):
        prove_chain_rule(proved, T, n)
        prove_paths(proved, T, n)
    for T in (0, 1):
        prove_start(proved, T)
    prove_kink(proved)
    prove_numbers(proved)
    return proved


if __name__ == "__main__":
    run(prove)
