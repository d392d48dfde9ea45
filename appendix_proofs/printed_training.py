"""Sections 2.1 to 2.3 as printed: Equations 1 to 5.

Theorem 1 (Equation 3). With P_0 = θ_0 the recurrence of Equation 3 gives P_t = θ_t of Equation 2 for every t, and its
first line is θ_{T+1}: T + 1 updates, of which the last is opt_T. The letters θ_t under ∇ are where the derivative is
taken.

Theorem 2 (what opt_t's subscript hides). The state of an optimizer is left implicit there. As values the equations
hold all the same. A derivative through the printed arguments alone misses the state's path: for SGD with momentum μ,
ℓ = h·θ²/2, r = 1 - lr·h, it is r² instead of r² - lr·μ·h after two steps. See augmented_state.py.

Theorem 3 (Equation 4). The second line is the first with Equation 1 in it. It is a number only where the inner
minimum is attained at one point: for L_train = (θ² - φ²)², L_val = θ there are two values, φ and -φ.

Theorem 4 (Equation 5). The gradient is that of the unrolled T + 1 steps, which Equation 3 calls an approximation (≈)
of θ* while Equation 5 has an equals sign: for ℓ = h·(θ - φ)²/2 and SGD dθ_{T+1}/dφ = 1 - (1 - lr·h)^(T+1), and dθ*/dφ
= 1. And G_T, which the second line writes without its arguments, is a function of P_T and φ_loss: with G_T held, the
derivative misses B·O_T·(H_T·dP_T/dφ + M_T).
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy import Expr

from appendix_proofs import sgd as rules
from appendix_proofs.augmented_state import h, momentum_steps
from appendix_proofs.printed import Chain, Printed, lam, phi
from appendix_proofs.symbolic import G, Statements, lr, momentum, positive, real, run, theta, weight_decay

PRINTED = (
    Printed(
        "Section 2.1, Equation 1 and footnote 1",
        "θ* = argmin(θ; L_train(θ, φ)), argmin(x; E) := argmin_x E",
        "definition",
    ),
    Printed(
        "Section 2.2, Equation 2",
        "θ_{t+1} = opt_t(θ_t, φ_opt, G_t), G_t = ∇_{θ_t} ℓ_t(θ_t, φ_loss)",
        "definition",
        "a state is left to the subscript of opt_t",
    ),
    Printed(
        "Section 2.2, SGD",
        "opt_t(θ_t, φ_opt, G_t) := θ_t - φ_opt·G_t, G_t = ∇_{θ_t} ℓ_t(θ_t, φ_loss)",
        "holds",
        "it is the shipped SGD without options",
    ),
    Printed(
        "Section 2.2, Equation 3",
        "θ* ≈ opt_T(θ_T, φ_opt, G_T) = opt_T(P_T, φ_opt, ∇_{θ_T} ℓ_T(P_T, φ_loss)), "
        "P_T = opt_{T-1}(θ_{T-1}, φ_opt, G_{T-1}) "
        "= opt_{T-1}(P_{T-1}, φ_opt, ∇_{θ_{T-1}} ℓ_{T-1}(P_{T-1}, φ_loss)), …, "
        "P_1 = opt_0(θ_0, φ_opt, G_0) = opt_0(θ_0, φ_opt, ∇_{θ_0} ℓ_0(θ_0, φ_loss))",
        "holds if",
        "it is read as values, ∇_{θ_t} at P_t; its derivatives need the state among the arguments (footnote 2)",
    ),
    Printed(
        "Section 2.3, Equation 4",
        "φ* = argmin(φ; L_val(θ*)) = argmin(φ; L_val(argmin(θ; L_train(θ, φ))))",
        "holds if",
        "the inner minimum is attained at one point",
    ),
    Printed(
        "Section 2.3, Equation 5",
        "φ_{τ+1} = metaopt_τ(φ_τ, M_τ), M_τ = ∇_{φ_τ} L_val(θ*), "
        "= metaopt_τ(φ_τ, ∇_{φ_τ} L_val(opt_T(P_T, φ_opt, G_T))), "
        "P_T = opt_{T-1}(P_{T-1}, φ_opt, ∇_{θ_{T-1}} ℓ_{T-1}(P_{T-1}, φ_loss)), …, P_1 = opt_0(θ_0, φ_opt, G_0)",
        "holds if",
        "θ* stands for θ_{T+1} (as ≈ in Equation 3), and G_T is differentiated as a function of P_T and φ_loss",
    ),
)


def sgd(theta: Any, phi_opt: Any, G: Any) -> Any:
    """Section 2.2, the instance of Equation 2."""
    return theta - phi_opt * G


FORMULAS = (sgd,)


def equation_2(opt: Any, grad: Any, theta_0: Any, T: int) -> Any:
    """θ_{T+1} by Equation 2, forwards."""
    theta = theta_0
    for t in range(T + 1):
        theta = opt(t, theta, phi, grad(t, theta, lam))
    return theta


def equation_3(opt: Any, grad: Any, theta_0: Any, T: int) -> Any:
    """The first line of Equation 3, from P_T downwards."""

    def P(t: int) -> Any:
        return theta_0 if t == 0 else opt(t - 1, P(t - 1), phi, grad(t - 1, P(t - 1), lam))

    return opt(T, P(T), phi, grad(T, P(T), lam))


def prove_values(proved: Statements) -> None:
    """Theorems 1 and 2, and the SGD of Section 2.2."""
    shipped = rules.sgd(1).outputs["theta"].subs(weight_decay, 0)
    proved.equal("Section 2.2, SGD: the rule of sgd.py without weight decay", sgd(theta, lr, G), shipped)
    opt, grad, theta_0 = sp.Function("opt"), sp.Function("G"), sp.Symbol("theta_0")
    for T in (0, 1, 2, 3):
        printed, updated = (each(opt, grad, theta_0, T) for each in (equation_3, equation_2))
        label = f"Section 2.2, Equation 3: T = {T}"
        proved.holds(f"{label}: it is θ_(T+1) of Equation 2 for any opt and ℓ", printed == updated)
        used = sorted(int(call.args[0]) for call in printed.atoms(opt))
        proved.holds(f"{label}: it makes T + 1 updates, opt_0 … opt_T", used == list(range(T + 1)))
    r = 1 - lr * h
    proved.equal(
        "Section 2.2, Equation 3: momentum, T = 1: its derivative by θ_0 is r² - lr·μ·h; by the printed arguments r²",
        momentum_steps(2)[2] - r**2,
        -lr * momentum * h,
    )


def prove_minima(proved: Statements) -> None:
    """Theorem 3."""
    (x,), (p, c) = real("x"), positive("p c")

    def minimisers(loss: Expr) -> list[Expr]:
        curvature = sp.diff(loss, x, 2)
        return [point for point in sp.solve(sp.diff(loss, x), x) if curvature.subs(x, point).is_positive]

    one = minimisers((x - p) ** 2 / 2)
    best = sp.solve(sp.diff((one[0] - c) ** 2 / 2, p), p)
    where = "Section 2.3, Equation 4"
    proved.holds(f"{where}: L_train = (θ - φ)²/2 has one minimum, θ* = φ", one == [p])
    proved.holds(f"{where}: with L_val = (θ - c)²/2 it gives φ* = c", best == [c])
    two = minimisers((x**2 - p**2) ** 2)
    proved.holds(f"{where}: L_train = (θ² - φ²)² has two, so L_val = θ has two values", sorted(two, key=str) == [-p, p])


def prove_meta_step(proved: Statements) -> None:
    """Theorem 4."""
    where = "Section 2.3, Equation 5"
    theta_0 = sp.Symbol("theta_0")
    for T in (0, 1, 2):
        unrolled = equation_3(lambda t, a, b, G: sgd(a, lr, G), lambda t, a, b: h * (a - phi), theta_0, T)
        label = f"{where}: ℓ = h·(θ - φ)²/2, SGD, T = {T}"
        proved.equal(
            f"{label}: dθ_(T+1)/dφ = 1 - (1 - lr·h)^(T+1)", sp.diff(unrolled, phi), 1 - (1 - lr * h) ** (T + 1)
        )
        number = sp.diff(unrolled, phi).subs({lr: sp.Rational(1, 2), h: 1})
        proved.holds(f"{label}: which is {number} for lr·h = 1/2, and dθ*/dφ = 1", number != 1)
    (minimum,) = sp.solve(sp.diff(h * (theta - phi) ** 2 / 2, theta), theta)
    proved.equal(f"{where}: the minimum of ℓ = h·(θ - φ)²/2 has dθ*/dφ = 1", sp.diff(minimum, phi), 1)
    for T in (0, 1, 2):
        chain = Chain(range(T + 1))
        last, (before,) = chain.local[T], chain.points[T]
        moved = {by: sp.diff(before, by) for by in (phi, lam)}
        fixed = {phi: last.phi[0] + last.theta[0] * moved[phi], lam: last.theta[0] * moved[lam]}
        for by, name, direct in ((phi, "φ_opt", 0), (lam, "φ_loss", last.M[0])):
            missed = chain.total([by])[0] - chain.B[0] * fixed[by]
            claim = chain.B[0] * last.O[0] * (last.H[0] * moved[by] + direct)
            proved.equal(
                f"{where}: T = {T}, any opt and ℓ: with G_T held d/d{name} misses B·O·(H·dP_T + M)", missed, claim
            )


def prove() -> list[str]:
    """Prove the four theorems; return their statements."""
    proved = Statements()
    prove_values(proved)
    prove_minima(proved)
    prove_meta_step(proved)
    return proved


if __name__ == "__main__":
    run(prove)
