"""Algorithm 1 as printed, line by line, and the stop-gradient of Section 2.5.

Theorem 1 (the stop-gradient). No function has both of its properties, unless f is constant: of f(x) = x the value is
x and the derivative 1. As an operator on expressions, which puts a constant symbol in x's place, differentiates, and
puts x back, it has both. With it the lines 12, 13 and 14 take the local partial derivatives; without it each counts
paths twice.

Theorem 2 (lines 8 to 15). For any smooth opt and ℓ without state, and L_val a function of θ alone, lines 8 to 15 as
printed give A_opt = ∇_{φ_opt} L_val, A_loss = ∇_{φ_loss} L_val and B_0 = ∇_{θ'_0} L_val: row vectors B, products in
the printed order. With a state they hold for the augmented state z = (θ, s) and not for θ alone (augmented_state.py).

Theorem 3 (line 14's letters). ∇ and stop stand there with θ_{j'}, and the arguments are θ'_{j'}. Of a letter that
opt'_{j'} does not contain the derivative is 0: SGD would give B_{j'} = B_{j'+1}·(0 - α·H). Read θ'_{j'} in both
places.

Theorem 4 (what lines 3, 8 and 16 leave out). A copied θ'_0 or state that depends on φ adds B_0·∇_φ θ'_0 or S_0·∇_φ
s'_0: for MAML, φ_loss = θ'_0 (Section 3.1), line 13 adds nothing, A_loss as printed is 0, and the meta-gradient is
B_0. An L_val that depends on φ_loss adds its own derivative. A meta-parameter that is in φ_opt and in φ_loss has
A_opt + A_loss.
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy import Matrix

from appendix_proofs.augmented_state import h
from appendix_proofs.printed import Chain, Printed, held, lam, phi
from appendix_proofs.symbolic import Statements, lr, run, smooth

STATELESS = "the rule has no state, or θ is the augmented state"
PRINTED = (
    Printed(
        "Section 2.5, the stop-gradient",
        "⟦-⟧_stop(x): ∀f [(⟦f(x)⟧_stop(x) = f(x)) ∧ (∇_x ⟦f(x)⟧_stop(x) = 0)]",
        "holds if",
        "it acts on expressions; no function of x does both",
    ),
    Printed(
        "Algorithm 1, lines 1, 4, 10 and 18",
        "for i = 0 to I-1; for j = 0 to J-1; for j' = J-1 to 0; return φ_{τ+I}",
        "definition",
        "I updates of φ, each from the same θ_t over the same ℓ_t, …, ℓ_{t+J-1}",
    ),
    Printed("Algorithm 1, line 2", "φ_opt, φ_loss ← split(φ_{τ+i})", "holds if", "no meta-parameter is in both parts"),
    Printed(
        "Algorithm 1, line 3",
        "θ'_0 ← θ_t, opt'_0 ← opt_t",
        "holds if",
        "neither copy depends on φ; else + B_0·∇_φ θ'_0 (MAML) and + S_0·∇_φ s'_0",
    ),
    Printed("Algorithm 1, line 5", "G_j ← ∇_{θ'_j} ℓ_{t+j}(θ'_j, φ_loss)", "definition"),
    Printed(
        "Algorithm 1, line 6", "θ'_{j+1} ← opt'_j(θ'_j, φ_opt, G_j)", "definition", "with the state, if there is one"
    ),
    Printed(
        "Algorithm 1, line 8",
        "A_opt ← zerosLike(φ_opt); A_loss ← zerosLike(φ_loss)",
        "holds if",
        "L_val does not depend on φ; else A_loss ← ∂L_val/∂φ_loss",
    ),
    Printed("Algorithm 1, line 9", "B_J ← ∇_{θ'_J} L_val(θ'_J)", "holds", "with a state, S_J = 0"),
    Printed("Algorithm 1, line 11", "O_{j'} ← ∇_{G_{j'}} opt'_{j'}(θ'_{j'}, φ_opt, G_{j'})", "definition"),
    Printed(
        "Algorithm 1, line 12",
        "A_opt ← A_opt + B_{j'+1}·(∇_{φ_opt} opt'_{j'}(⟦θ'_{j'}⟧_stop(φ_opt), φ_opt, ⟦G_{j'}⟧_stop(φ_opt)))",
        "holds if",
        STATELESS,
    ),
    Printed(
        "Algorithm 1, line 13",
        "A_loss ← A_loss + B_{j'+1}·O_{j'}·(∇_{φ_loss} ∇_{θ'_{j'}} ℓ_{t+j'}(⟦θ'_{j'}⟧_stop(φ_loss), φ_loss))",
        "holds if",
        STATELESS,
    ),
    Printed(
        "Algorithm 1, line 14",
        "B_{j'} ← B_{j'+1}·((∇_{θ_{j'}} opt'_{j'}(θ'_{j'}, φ_opt, ⟦G_{j'}⟧_stop(θ_{j'}))) "
        "+ O_{j'}·(∇²_{θ'_{j'}} ℓ_{t+j'}(θ'_{j'}, φ_loss)))",
        "misprint",
        f"θ'_{{j'}} for θ_{{j'}} under ∇ and stop; with that it holds if {STATELESS}",
    ),
    Printed(
        "Algorithm 1, line 16",
        "φ_{τ+i+1} ← metaopt(φ_{τ+i}, join(A_opt, A_loss))",
        "holds if",
        "no meta-parameter is in both parts, else join adds; metaopt is metaopt_{τ+i} of Equation 5",
    ),
)


def line_12(A_opt: Any, B: Any, of_phi: Any) -> Any:
    """A_opt with one step's share."""
    return A_opt + B * of_phi


def line_13(A_loss: Any, B: Any, O: Any, M: Any) -> Any:  # noqa: E741 - the paper's letter
    """A_loss with one step's share."""
    return A_loss + B * O * M


def line_14(B: Any, of_theta: Any, O: Any, H: Any) -> Any:  # noqa: E741 - the paper's letter
    """B_{j'} from B_{j'+1}."""
    return B * (of_theta + O * H)


FORMULAS = (line_12, line_13, line_14)


def prove_stop(proved: Statements) -> None:
    """Theorem 1."""
    where, x, f = "Section 2.5, the stop-gradient", sp.Symbol("x"), sp.Function("f")
    proved.equal(f"{where}: on the expression f(x) its derivative is 0", held(f, [x], [0], x), 0)
    proved.equal(f"{where}: and elsewhere in an expression x moves", held(lambda a, b: a * b, [x, x], [0], x), x)
    proved.equal(f"{where}: as a function it fails for f(x) = x: of the value x the derivative is 1", sp.diff(x, x), 1)


def swept(chain: Chain) -> tuple[Matrix, Matrix, Matrix]:
    """B_0, A_opt, A_loss by lines 8 to 15."""
    A_opt = A_loss = sp.zeros(1)
    B = chain.B
    for step in reversed(chain.local):
        A_opt = line_12(A_opt, B, step.phi)
        A_loss = line_13(A_loss, B, step.O, step.M)
        B = line_14(B, step.theta, step.O, step.H)
    return B, A_opt, A_loss


def prove_lines(proved: Statements, J: int, n: int) -> None:
    """Theorem 2; for θ in R also that the lines' own derivatives, with the stop-gradients, are the local ones."""
    chain, label = Chain(range(J), n), f"J = {J}, θ in R^{n}"
    B, A_opt, A_loss = swept(chain)
    proved.equal(f"Algorithm 1, line 12: {label}: A_opt = ∇_(φ_opt) L_val", A_opt, chain.total([phi]))
    proved.equal(f"Algorithm 1, line 13: {label}: A_loss = ∇_(φ_loss) L_val", A_loss, chain.total([lam]))
    proved.equal(f"Algorithm 1, line 14: {label}: B_0 = ∇_(θ'_0) L_val", B, chain.total(chain.start))
    for j in range(J if n == 1 else 0):
        (theta,), step, here = chain.points[j], chain.local[j], f"{label}, j' = {j}"
        (moved,), (gradient,) = chain.points[j + 1], chain.G[j]
        opt, grad = moved.func, gradient.func
        x = sp.Symbol("x")
        by_phi = held(opt, (theta, phi, gradient), (0, 2), phi)
        mixed = held(grad, (theta, lam), (0,), lam)
        by_theta = held(opt, (x, phi, grad(x, lam)), (2,), x).xreplace({x: theta})
        for number, found, local in ((12, by_phi, step.phi), (13, mixed, step.M), (14, by_theta, step.theta)):
            proved.equal(
                f"Algorithm 1, line {number}: {here}: stopped, its derivative is the local one", found, local[0]
            )
        free = held(opt, (x, phi, grad(x, lam)), (), x).xreplace({x: theta})
        proved.equal(
            f"Algorithm 1, line 14: {here}: not stopped, it has O·H twice", free - by_theta, step.O[0] * step.H[0]
        )
        total = held(opt, (theta, phi, gradient), (), phi) - by_phi
        twice = (step.theta[0] + step.O[0] * step.H[0]) * sp.diff(theta, phi)
        proved.equal(f"Algorithm 1, line 12: {here}: not stopped, it has the earlier steps as well", total, twice)


def prove_letters(proved: Statements) -> None:
    """Theorem 3, by SGD on ℓ = h·θ²/2."""
    alpha, x, unprimed, slope = sp.symbols("alpha x theta_j slope")
    literal = sp.diff(x - alpha * sp.Symbol("G_stopped"), unprimed)
    right, where = slope * (1 - alpha * h), "Algorithm 1, line 14"
    as_printed = line_14(slope, literal, -alpha, h)
    corrected = line_14(slope, sp.diff(x - alpha * sp.Symbol("G_stopped"), x), -alpha, h)
    proved.equal(f"{where}: SGD, with θ_(j'): B·(0 - α·H), which misses B", right - as_printed, slope)
    proved.equal(f"{where}: SGD, with θ'_(j'): B·(1 - α·H), which is right", corrected, right)


def prove_left_out(proved: Statements) -> None:
    """Theorem 4, for undefined opt and ℓ, J = 2."""
    chain, start = Chain(range(2)), sp.Function("theta_start")(phi)
    (theta_0,), (B_0, A_opt, A_loss) = chain.start, swept(chain)
    at = {theta_0: start}
    total = sp.diff(chain.L_val.subs(at), phi)
    claim = A_opt[0].subs(at) + B_0[0].subs(at) * sp.diff(start, phi)
    proved.equal("Algorithm 1, line 3: J = 2: θ'_0 = θ(φ) adds B_0·∇_φ θ'_0", claim, total)
    point, g, x = [lam], sp.Function("g"), sp.Symbol("x")
    for _ in range(2):
        point.append(point[-1] - lr * g(point[-1]))
    B: Any = sp.Function("slope")(x).subs(x, point[2])
    L_val = smooth("L_maml", sp.Function("slope"))(point[2])
    maml = "Algorithm 1, line 3: MAML, φ_loss = θ'_0, SGD"
    for j in (1, 0):
        proved.equal(f"{maml}, j' = {j}: ∇_φ G(⟦θ'⟧_stop) = 0, line 13 adds nothing", held(g, [point[j]], [0], lam), 0)
        B = line_14(B, 1, -lr, sp.diff(g(x), x).subs(x, point[j]))
    proved.equal(f"{maml}: J = 2: B_0 is ∇_φ L_val", B, sp.diff(L_val, lam).doit())
    both = chain.L_val.subs(lam, phi)
    claim = (A_opt[0] + A_loss[0]).subs(lam, phi)
    for line in (2, 16):
        statement = f"Algorithm 1, line {line}: J = 2: φ in both parts: ∇_φ L_val = A_opt + A_loss"
        proved.equal(statement, claim, sp.diff(both, phi))
    direct, theta_J = sp.Function("c")(lam), chain.points[-1][0]
    total = sp.diff(chain.L_val * direct, lam)
    A_own = direct * A_loss[0] + chain.L_val * sp.diff(direct, lam)
    proved.equal("Algorithm 1, line 8: J = 2: L_val·c(φ_loss) adds L_val·∇c to A_loss", A_own, total)
    at_end = sp.diff(chain.L_val.func(x), x).xreplace({x: theta_J})
    proved.equal("Algorithm 1, line 9: J = 2: B_J = ∇_(θ'_J) L_val", chain.B[0], at_end)


def prove() -> list[str]:
    """Prove the four theorems; return their statements."""
    proved = Statements()
    prove_stop(proved)
    for J, n in ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2)):
        prove_lines(proved, J, n)
    prove_letters(proved)
    prove_left_out(proved)
    return proved


if __name__ == "__main__":
    run(prove)
