"""Appendix A as printed: the derivatives of a step of SGD (A.1) and Adagrad (A.2), by φ and by θ_t.

Below d… are total derivatives by φ, and Σ is Σ G_i² over the gradients so far. Both chains of A.1 and of A.2 are the
quotient and chain rules, done right; what needs a condition is Σ.

Theorem 1 (A.1). Both lines hold, for any α(φ), θ_t(φ) and G_t(θ_t, φ): ∇_φ G_t is the total derivative M_t + H_t·∇_φ
θ_t. A constant α has the derivative 0, which is what the printed else-branch says. An α that is computed from φ, as
α = e^φ, is not in φ, and its term G_t·α stays.

Theorem 2 (A.2, by φ). The line holds where Σ > 0, with every G_i a function of φ: the sum in its last term is the
state's path, so this line, unlike the next, is exact over all steps.

Theorem 3 (A.2, by θ_t). The lines hold where Σ > 0, with G_1 … G_{t-1} held: of all G_i only G_t is a function of
θ_t. (For θ in R^n the factors scale the rows of ∇²ℓ.) They are one step's derivative. Their product over the steps,
as item 2 of Section 2.4 takes it, is not ∇_{θ_0} θ_2, since Σ carries G_0 on: for η = 1, ℓ = θ²/2, θ_0 = 2 the
product lacks 2/5^(3/2).

Theorem 4 (where the sum starts). Equations 2 and 3 count steps from t = 0. There Σ_{i=1..0} is empty, and the first
step divides by 0; the later ones lack G_0². Σ_{i=0..t} is Adagrad: the shipped rule with eps = 0. (Counted from t = 1
the print is consistent in itself.)

Theorem 5 (no eps). Where Σ = 0, that is all gradients 0, the printed rule is not defined, and the first step is
-η·sign(G): its derivative is 0 for G ≠ 0 and does not exist at 0, so requirement II fails there. With eps > 0 outside
the root (as in torch) the derivative exists for every G; at 0 it is -η/eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy as sp
from sympy import Expr, Matrix, Symbol

from appendix_proofs import adagrad as rules
from appendix_proofs.printed import Printed, phi
from appendix_proofs.requirements import one_sided
from appendix_proofs.symbolic import G, Statements, eps, lr, lr_decay, positive, real, run, theta, weight_decay, x

POSITIVE = "Σ > 0"
PRINTED = (
    Printed(
        "Appendix A.1, by φ",
        "∇_φ θ_{t+1} = ∇_φ SGD(θ_t, G_t) = ∇_φ[θ_t - α·G_t] = ∇_φ θ_t - G_t·∇_φ α - α·∇_φ G_t",
        "holds",
        "∇_φ G_t is total",
    ),
    Printed(
        "Appendix A.1, the case α ⊄ φ",
        "∇_φ α is defined iff α ⊆ φ, else G_t·∇_φ α = 0",
        "holds if",
        "α is not computed from φ either, as α = e^φ is: else its term stays",
    ),
    Printed(
        "Appendix A.1, by θ_t",
        "∇_{θ_t} θ_{t+1} = ∇_{θ_t} SGD(θ_t, G_t) = ∇_{θ_t}[θ_t - α·G_t] = ∇_{θ_t} θ_t - α·∇_{θ_t} G_t "
        "= 1 - α·∇²_{θ_t} ℓ_t(θ_t, φ)",
        "holds",
        "1 is the identity matrix",
    ),
    Printed(
        "Appendix A.2, the rule",
        "Adagrad(θ_t, G_t) = θ_t - (η/√(Σ_{i=1..t} G_i²))·G_t",
        "misprint",
        "Σ_{i=0..t} by the indices of Equations 2 and 3; and it has no eps: it is not defined where Σ = 0",
    ),
    Printed(
        "Appendix A.2, by φ",
        "∇_φ θ_{t+1} = ∇_φ Adagrad(θ_t, G_t) = ∇_φ θ_t - η·∇_φ G_t/√Σ - G_t·∇_φ η/√Σ "
        "+ η·G_t·(Σ_{i=1..t} G_i·∇_φ G_i)/Σ^(3/2)",
        "holds if",
        f"{POSITIVE}, and every G_i is a function of φ",
    ),
    Printed(
        "Appendix A.2, the case η ⊄ φ",
        "∇_φ η is defined iff η ⊆ φ, else G_t·∇_φ η/√Σ = 0",
        "holds if",
        f"{POSITIVE}, and η is not computed from φ either",
    ),
    Printed(
        "Appendix A.2, by θ_t, first form",
        "∇_{θ_t} θ_{t+1} = ∇_{θ_t} Adagrad(θ_t, G_t) = ∇_{θ_t} θ_t - η·∇_{θ_t} G_t/√Σ + η·G_t²·∇_{θ_t} G_t/Σ^(3/2)",
        "holds if",
        f"{POSITIVE}; of the G_i only G_t is a function of θ_t. It is one step's: over several, the state Σ counts too",
    ),
    Printed(
        "Appendix A.2, by θ_t, last form",
        "∇_{θ_t} θ_{t+1} = 1 - η·∇²_{θ_t} ℓ_t(θ_t, φ)/√Σ + η·G_t²·∇²_{θ_t} ℓ_t(θ_t, φ)/Σ^(3/2)",
        "holds if",
        "as the first form; for θ in R^n the factors scale the rows of ∇²ℓ",
    ),
)


def sgd_phi(dtheta: Any, G_t: Any, dalpha: Any, alpha: Any, dG: Any) -> Any:
    """A.1, by φ."""
    return dtheta - G_t * dalpha - alpha * dG


def sgd_theta(one: Any, alpha: Any, H: Any) -> Any:
    """A.1, by θ_t."""
    return one - alpha * H


def adagrad(theta_t: Any, eta: Any, G_t: Any, total: Any) -> Any:
    """A.2, the rule; `total` is Σ."""
    return theta_t - eta / sp.sqrt(total) * G_t


def adagrad_phi(dtheta: Any, eta: Any, deta: Any, G_t: Any, dG: Any, total: Any, products: Any) -> Any:
    """A.2, by φ; `products` is Σ_i G_i·∇_φ G_i."""
    root = sp.sqrt(total)
    return dtheta - eta * dG / root - G_t * deta / root + eta * G_t * products / total ** sp.Rational(3, 2)


def adagrad_theta(one: Any, eta: Any, G_t: Any, H: Any, total: Any) -> Any:
    """A.2, by θ_t."""
    return one - eta * H / sp.sqrt(total) + eta * G_t**2 * H / total ** sp.Rational(3, 2)


FORMULAS = (sgd_phi, sgd_theta, adagrad, adagrad_phi, adagrad_theta)


def squares(gradients: Sequence[Expr]) -> Expr:
    """Σ."""
    return sum((g**2 for g in gradients), sp.Integer(0))


def prove_by_phi(proved: Statements) -> None:
    """Theorems 1 and 2."""
    at, rate, constant = sp.Function("theta_t")(phi), sp.Function("alpha")(phi), sp.Symbol("alpha")
    for name, alpha in (("α(φ)", rate), ("α constant", constant)):
        g = sp.Function("G")(at, phi)
        dtheta, dalpha, dG = (sp.diff(each, phi) for each in (at, alpha, g))
        claim = sgd_phi(dtheta, g, dalpha, alpha, dG)
        proved.equal(
            f"Appendix A.1, by φ: {name}, θ_t(φ), G_t(θ_t, φ)", sp.diff(at - alpha * g, phi).doit(), claim.doit()
        )
    proved.equal("Appendix A.1, the case α ⊄ φ: the term is 0", G * sp.diff(constant, phi), 0)
    computed = sp.exp(phi)
    proved.equal("Appendix A.1, the case α ⊄ φ: of α = e^φ it is G·α", G * sp.diff(computed, phi), G * computed)
    proved.equal("Appendix A.2, the case η ⊄ φ: the term is 0", G * sp.diff(lr, phi) / sp.sqrt(x), 0)
    for t in (1, 2, 3):
        gradients = [sp.Function(f"G_{i}")(phi) for i in range(t)]
        moved = adagrad(at, rate, gradients[-1], squares(gradients))
        dtheta, deta, *dG = (sp.diff(each, phi) for each in (at, rate, *gradients))
        products = sum((g * d for g, d in zip(gradients, dG, strict=True)), sp.Integer(0))
        claim = adagrad_phi(dtheta, rate, deta, gradients[-1], dG[-1], squares(gradients), products)
        proved.equal(f"Appendix A.2, by φ: {t} gradient(s), each a function of φ", sp.diff(moved, phi), claim)


def prove_by_theta(proved: Statements) -> None:
    """Theorems 1 and 3, θ in R and R²; the gradients before G_t are held."""
    eta = lr
    for n in (1, 2):
        at, eye = Matrix(real(f"theta_:{n}")), sp.eye(n)
        undefined = Matrix([sp.Function(f"G_{i}")(*at) for i in range(n)])
        loss = sp.Function("l")(*at)
        forms = {
            "first": (undefined, undefined.jacobian(at)),
            "last": (Matrix([loss]).jacobian(at).T, sp.hessian(loss, at)),
        }
        for form, (g, H) in forms.items():
            label = f"{form} form: θ in R^{n}"
            proved.equal(
                f"Appendix A.1, by θ_t: {label.replace(':', ',')}", (at - eta * g).jacobian(at), sgd_theta(eye, eta, H)
            )
            for t in (1, 2, 3):
                before = [Matrix(real(f"g{i}_:{n}")) for i in range(1, t)]
                total = [squares([row[i] for row in (*before, g)]) for i in range(n)]
                moved = Matrix([adagrad(at[i], eta, g[i], total[i]) for i in range(n)])
                rows = [[adagrad_theta(eye[i, k], eta, g[i], H[i, k], total[i]) for k in range(n)] for i in range(n)]
                statement = f"Appendix A.2, by θ_t, {label}, {t} gradient(s), the earlier held"
                proved.equal(statement, moved.jacobian(at), Matrix(rows))
    theta_0, two = sp.Symbol("theta_0", positive=True), {sp.Symbol("theta_0", positive=True): 2}
    theta_1 = adagrad(theta_0, 1, theta_0, theta_0**2)
    theta_2 = adagrad(theta_1, 1, theta_1, theta_0**2 + theta_1**2)
    first = adagrad_theta(1, 1, theta_0, 1, theta_0**2)
    second = adagrad_theta(1, 1, theta_1, 1, theta_0**2 + theta_1**2)
    missed = (sp.diff(theta_2, theta_0) - first * second).subs(two)
    where = "Appendix A.2, by θ_t, first form"
    proved.equal(
        f"{where}: over two steps the product lacks 2/5^(3/2) for ℓ = θ²/2, η = 1, θ_0 = 2", missed, 2 / sp.sqrt(5) ** 3
    )
    dG = [sp.Integer(1), sp.diff(theta_1, theta_0)]
    products = theta_0 * dG[0] + theta_1 * dG[1]
    by_phi = adagrad_phi(dG[1], 1, 0, theta_1, dG[1], theta_0**2 + theta_1**2, products)
    proved.equal("Appendix A.2, by φ: with φ = θ_0 it is exact over those two steps", by_phi, sp.diff(theta_2, theta_0))


def prove_sum(proved: Statements) -> None:
    """Theorem 4."""
    where, (g_0, g_1) = "Appendix A.2, the rule", positive("G_0 G_1")
    plain = {weight_decay: 0, lr_decay: 0, eps: 0}
    step = {name: output.subs(plain) for name, output in rules.adagrad(1).outputs.items()}
    state = sp.Integer(0)
    for t, g in enumerate((g_0, g_1)):
        moved, after = (step[name].subs({G: g, x: state}, simultaneous=True) for name in ("theta", "sum"))
        zeroth, first = squares((g_0, g_1)[: t + 1]), squares((g_0, g_1)[1 : t + 1])
        proved.equal(f"{where}: t = {t}: the shipped rule with eps = 0 sums from i = 0", after, zeroth)
        proved.equal(f"{where}: t = {t}: and is the printed one with that sum", moved, adagrad(theta, lr, g, zeroth))
        if t:
            lacking = f"{where}: t = {t}: summed from i = 1 as printed the sum lacks G_0²"
            proved.equal(lacking, zeroth - first, g_0**2)
        else:
            proved.equal(f"{where}: t = 0: summed from i = 1 as printed the sum is empty, 0", first, 0)
        state = after


def prove_zero(proved: Statements) -> None:
    """Theorem 5."""
    where = "Appendix A.2, the rule"
    first = adagrad(theta, lr, G, G**2)
    form = "Appendix A.2, by θ_t, last form"
    nonzero: Symbol = positive("g")[0]
    for sign in (1, -1):
        moved = first.subs(G, sign * nonzero) - theta
        proved.equal(f"{where}: the first step is -η·sign(G), for G {'<>'[sign > 0]} 0", moved, -sign * lr)
        slope = adagrad_theta(1, lr, sign * nonzero, Symbol("H"), nonzero**2)
        proved.equal(f"{form}: the first step has ∇_(θ_t) θ_(t+1) = 1, for G {'<>'[sign > 0]} 0", slope, 1)
    jump = [sp.limit(adagrad(0, lr, sign * nonzero, nonzero**2), nonzero, 0) for sign in (1, -1)]
    proved.holds(f"{where}: at G = 0 the first step jumps from η to -η", jump == [-lr, lr])
    slopes = one_sided(-lr * G / (sp.Abs(G) + eps), G, sp.Integer(0))
    proved.holds(f"{where}: with eps the first step's derivative at G = 0 is -η/eps", slopes == (-lr / eps, -lr / eps))


def prove() -> list[str]:
    """Prove the five theorems; return their statements."""
    proved = Statements()
    prove_by_phi(proved)
    prove_by_theta(proved)
    prove_sum(proved)
    prove_zero(proved)
    return proved


if __name__ == "__main__":
    run(prove)
