"""Three sentences of the paper about the recurrence: what A and B are after Algorithm 1, and footnote 2.

Theorem 1. At the end of the loop A_opt and A_loss, joined, are ∇_φ L_val, under the conditions of
printed_algorithm.py.

Theorem 2 (the sentence that defines B). After the algorithm B_{j'} = ∇_{θ_{j'}} B_{j'+1} is printed: the derivative
of a gradient, so second derivatives of L_val. For L_val = θ it is 0, and for L_val = θ²/2, one SGD step on ℓ = θ²/2,
1 - α, where the true B_0 is (1 - α)²·θ_0. The correction is B_{j'} = ∇_{θ'_{j'}} L_val(θ'_J) = B_{j'+1}·∇_{θ'_{j'}}
θ'_{j'+1}: line 14.

Theorem 3 (footnote 2). It asks for the state where that is a function of earlier parameters, in the derivative by
these. That is too narrow: the state must be in ∇_φ as well. One that is a function of φ_opt alone, as NAdam's product
of momenta: for u' = μ·u, u_0 = 1, θ' = θ - u'·G(θ) after two steps the lines with θ alone miss -μ·G_1 of ∇_μ θ_2. And
one that is a function of φ_loss through the earlier gradients: for SGD with momentum, where the state counts in the
derivative by θ alone, ∇_{φ_loss} θ_2 lacks -lr·μ·M_0.
"""

from __future__ import annotations

import sympy as sp
from sympy import Expr, Matrix

from appendix_proofs.augmented_state import h, momentum_steps
from appendix_proofs.printed import Chain, Printed, lam, phi
from appendix_proofs.printed_algorithm import line_12, line_13, line_14, swept
from appendix_proofs.symbolic import Statements, lr, momentum, run, smooth

PRINTED = (
    Printed(
        "Section 2.5, after Algorithm 1, what is preserved",
        "G_0, …, G_{J-1} and θ'_0, …, θ'_J",
        "definition",
        "with a state, s_0, …, s_{J-1} as well",
    ),
    Printed(
        "Section 2.5, after Algorithm 1, A",
        "the accumulators contain ∇_{φ_opt} L_val(θ'_J) and ∇_{φ_loss} L_val(θ'_J) by the end of the loop",
        "holds if",
        "the conditions of lines 2 to 14 hold",
    ),
    Printed(
        "Section 2.5, after Algorithm 1, B",
        "B_{j'} = ∇_{θ_{j'}} B_{j'+1}",
        "misprint",
        "B_{j'} = ∇_{θ'_{j'}} L_val(θ'_J) = B_{j'+1}·∇_{θ'_{j'}} θ'_{j'+1}",
    ),
    Printed(
        "Section 2.4, footnote 2",
        "a state that is a function of previous values of the parameters is included in the gradients of the "
        "meta-loss with regard to those parameters",
        "holds if",
        "it is read as needed; it is not enough: a state that is a function of φ is included too, "
        "in the derivatives by φ_opt and φ_loss",
    ),
)


def prove_accumulators(proved: Statements) -> None:
    """Theorem 1."""
    for J, n in ((1, 1), (2, 1), (2, 2)):
        chain = Chain(range(J), n)
        joined = Matrix.hstack(*swept(chain)[1:])
        where = "Section 2.5, after Algorithm 1, A"
        proved.equal(f"{where}: J = {J}, θ in R^{n}: joined they are ∇_φ L_val", joined, chain.total([phi, lam]))


def prove_adjoint(proved: Statements) -> None:
    """Theorem 2."""
    alpha, x, theta_0 = sp.symbols("alpha x theta_0")
    where = "Section 2.5, after Algorithm 1, B"
    theta_1 = theta_0 - alpha * theta_0
    for name, L_val in (("θ", x), ("θ²/2", x**2 / 2)):
        B_1 = sp.diff(L_val, x).subs(x, theta_1)
        true, printed = sp.diff(L_val.subs(x, theta_1), theta_0), sp.diff(B_1, theta_0)
        proved.equal(
            f"{where}: L_val = {name}: B_1·∇_(θ'_0) θ'_1 = ∇_(θ'_0) L_val", B_1 * sp.diff(theta_1, theta_0), true
        )
        numbers = {alpha: sp.Rational(1, 10), theta_0: 2}
        a, b = (sp.sympify(each).subs(numbers) for each in (printed, true))
        statement = (
            f"{where}: L_val = {name}, α = 0.1, ℓ = θ²/2, θ_0 = 2: ∇_(θ_0) B_1 = {float(a):.2f}, B_0 = {float(b):.2f}"
        )
        proved.holds(statement, a != b)


def prove_footnote(proved: Statements) -> None:
    """Theorem 3, and that footnote 2 is needed."""
    where, mu, theta_0, x = "Section 2.4, footnote 2", sp.Symbol("mu"), sp.Symbol("theta_0"), sp.Symbol("x")
    further = momentum_steps(2)[2] - (1 - lr * h) ** 2
    proved.equal(f"{where}: needed: with momentum θ alone misses -lr·μ·h of ∇_(θ_0) θ_2", further, -lr * momentum * h)
    G = sp.Function("G")
    theta_1 = theta_0 - mu * G(theta_0)
    theta_2 = theta_1 - mu**2 * G(theta_1)
    H_1 = sp.diff(G(x), x).subs(x, theta_1)
    u_1 = mu  # held by lines 12 and 14 with θ alone
    A_opt = line_12(line_12(0, 1, -u_1 * G(theta_1)), line_14(1, 1, -(mu**2), H_1), -G(theta_0))
    missed: Expr = sp.diff(theta_2, mu).doit() - A_opt
    proved.equal(
        f"{where}: too narrow: u' = μ·u, θ' = θ - u'·G, J = 2: θ alone misses -μ·G_1 of ∇_μ θ_2",
        missed,
        -mu * G(theta_1),
    )
    g_0, g_1 = (smooth(f"G_{j}", sp.Function(f"H_{j}"), sp.Function(f"M_{j}")) for j in (0, 1))
    b_1 = g_0(theta_0, lam)  # the buffers of SGD with momentum
    theta_1 = theta_0 - lr * b_1
    theta_2 = theta_1 - lr * (momentum * b_1 + g_1(theta_1, lam))
    M_0, M_1 = sp.Function("M_0")(theta_0, lam), sp.Function("M_1")(theta_1, lam)
    onward = 1 - lr * sp.Function("H_1")(theta_1, lam)  # ∇_(θ_1) θ_2; b_1 itself is not a function of θ_1
    by_parameters = line_13(line_13(0, 1, -lr, M_1), onward, -lr, M_0)
    proved.equal(
        f"{where}: too narrow: momentum, J = 2, the state held in ∇_(φ_loss): it lacks -lr·μ·M_0",
        sp.diff(theta_2, lam) - by_parameters,
        -lr * momentum * M_0,
    )


def prove() -> list[str]:
    """Prove the three theorems; return their statements."""
    proved = Statements()
    prove_accumulators(proved)
    prove_adjoint(proved)
    prove_footnote(proved)
    return proved


if __name__ == "__main__":
    run(prove)
