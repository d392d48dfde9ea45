"""The conditions I, II, IIIa and IIIb for a meta-gradient, and what is lost where each fails.

The requirements of the paper's Section 2.4, with what they need besides (as printed: printed_requirements.py):

    I     L_val is differentiable in theta, else there is no B_J;
    II    opt_j is differentiable in theta and G, besides in its state, and G in theta, else B cannot pass line 14;
    IIIa  opt_j is differentiable in φ_opt, else line 12 has nothing to add to A_opt;
    IIIb  G = ∇_θ ℓ is differentiable in φ_loss, that is, the mixed second derivative exists, else line 13 has
          nothing to add to A_loss.

The paper asks for IIIa or IIIb or both: each is needed for its own part of φ.

A condition fails in one of two ways. Where the derivative does not exist (at a kink or a jump) the
meta-gradient is undefined. Where it exists and is zero almost everywhere, lines 8-14 are exact and return zero, and no
optimizer of φ can use it. `prove` gives the smallest example of each.

Theorem (linear inner loss). Let every ℓ_j be linear in theta. Then H_j = 0: what one coordinate of theta does
reaches no later gradient. A φ_loss that stands in the slope itself still gets its A_loss through line 13. But one whose
only way to L_val leads through a later gradient gets A_loss = 0: with theta = (u, w),

    ℓ = φ·u + d·w + κ·u·w,   L_val = L_val(w),   plain SGD, J = 2:   A_loss = κ·lr²·∂L_val/∂w,

which the second derivative κ carries alone, and which is 0 for the linear loss κ = 0.
"""

from __future__ import annotations

from dataclasses import replace

import sympy as sp
from sympy import Expr, Matrix, Symbol

from appendix_proofs import adam, symbolic
from appendix_proofs.augmented_state import Adjoints, Step, Undefined, sweep
from appendix_proofs.momentum import heavy_ball
from appendix_proofs.shipped import pull_symbols
from appendix_proofs.symbolic import (
    G,
    Statements,
    b,
    beta1,
    beta2,
    eps,
    eps_root,
    lr,
    m,
    positive,
    real,
    run,
    theta,
    weight_decay,
)
from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW

(phi,) = real("phi")
(h,) = positive("h")
zero = sp.Integer(0)


def one_sided(f: Expr, of: Symbol, at: Expr) -> tuple[Expr, Expr]:
    """The right and left derivative of f at a point, as limits of difference quotients."""
    start = f.subs(of, at)
    right, left = (sp.limit((f.subs(of, at + side * h) - start) / (side * h), h, 0) for side in (1, -1))
    return right, left


def prove_validation_loss(proved: Statements) -> None:
    """I."""
    slopes = one_sided(sp.Abs(theta), theta, zero)
    proved.holds(
        "I fails for L_val = |theta| at 0: its one-sided slopes are 1 and -1, there is no B_J", slopes == (1, -1)
    )
    for at in (-2, 3):
        slopes = one_sided((1 + sp.sign(theta)) / 2, theta, sp.Integer(at))
        proved.holds(
            f"I holds in vain for an accuracy, a step in theta: at {at} its slope is 0, so B_J = 0", slopes == (0, 0)
        )
    system = Undefined(2, 1, 1)
    end = system.end._replace(B=0 * system.end.B, S=0 * system.end.S, A_opt=zero)
    start = sweep(system.steps, end)[0]
    proved.equal("B_J = 0 makes B_0 zero, for any opt and losses, J = 2", start.B, 0 * start.B)
    proved.equal("and A_opt", start.A_opt, 0)
    proved.equal("and leaves A_loss its explicit part, ∂L_val/∂φ_loss", start.A_loss, end.A_loss)


def prove_optimizer(proved: Statements) -> None:
    """II, by sign descent, and by an inner gradient that is a sign."""
    step = theta - lr * sp.sign(G)
    for value in (-2, 3):
        slopes = one_sided(step, G, sp.Integer(value))
        proved.holds(f"II holds in vain for theta - lr·sign(G): at G = {value}, O = ∂theta'/∂G = 0", slopes == (0, 0))
    slopes = one_sided(step, G, zero)
    proved.holds("and fails at G = 0, where the slope is infinite", slopes == (-sp.oo, -sp.oo))
    system = Undefined(2, 1, 1)
    blind = [each._replace(T_G=0 * each.T_G, U_G=0 * each.U_G) for each in system.steps]
    start = sweep(blind, system.end)[0]
    proved.equal("O = 0 leaves A_loss its explicit part, J = 2", start.A_loss, system.end.A_loss)
    without = sweep([each._replace(H=0 * each.H) for each in blind], system.end)[0]
    proved.equal("and B_0 does not see the inner loss's curvature", start.B, without.B)
    proved.equal("while ∂theta'/∂lr = -sign(G) remains", sp.diff(step, lr), -sp.sign(G))
    (g,) = positive("g")
    at = {G: g} | dict.fromkeys((m, weight_decay, beta1, beta2, eps), zero)
    rule = replace(symbolic.without(adam.adam(1), eps_root), step=zero)
    shipped = pull_symbols(Adam(betas=(0, 0), eps=0), rule, at, {"theta": sp.Integer(1)})
    proved.equal("the shipped Adam with betas = (0, 0), eps = 0 is sign descent: its ∂theta'/∂G is 0", shipped["G"], 0)
    slopes = one_sided(sp.sign(theta), theta, sp.Integer(2))
    proved.holds("II holds in vain for ℓ = |theta|: G = sign(theta), ∇²ℓ = 0 away from 0", slopes == (0, 0))


def prove_hyperparameters(proved: Statements) -> None:
    """IIIa."""
    step = theta - sp.floor(phi) * G
    slopes = one_sided(step.subs(G, 1), phi, sp.Rational(1, 2))
    proved.holds("IIIa holds in vain for a rounded lr = floor(φ): at φ = 1/2 the slope is 0", slopes == (0, 0))
    left = one_sided(step.subs(G, 1), phi, sp.Integer(1))[1]
    proved.holds("and fails at φ = 1, where a one-sided slope is infinite", left == -sp.oo)
    switches = {"nesterov", "maximize", "amsgrad"}
    names = {name for kind in (SGD, Adagrad, Adam, AdamW) for name in kind().continuous()}
    proved.holds("a switch has no derivative: none of the shipped rules takes one of it", not names & switches)
    first = heavy_ball(1, first=True).jacobian()
    proved.equal(
        "a derivative can be rightly zero: ∂theta_1/∂momentum from b = 0", first["theta", "momentum"].subs(b, 0), 0
    )
    proved.equal("as can ∂theta_1/∂dampening", first["theta", "dampening"], 0)


def prove_training_loss(proved: Statements) -> None:
    """IIIb, and the theorem on a linear inner loss."""
    base, penalty = sp.Function("l")(theta), sp.Function("c")(phi)
    proved.equal("IIIb in vain, ℓ = l(theta) + c(φ): ∂²ℓ/∂φ∂theta = 0", sp.diff(base + penalty, theta, phi), 0)
    gradient = sp.sign(theta - phi)
    slopes = one_sided(gradient.subs(theta, 2), phi, sp.Integer(1))
    proved.holds(
        "IIIb in vain, ℓ = |theta - φ|: G = sign(theta - φ) has slope 0 in φ away from theta", slopes == (0, 0)
    )
    slopes = one_sided(gradient.subs(theta, 1), phi, sp.Integer(1))
    proved.holds("and at φ = theta, where IIIb fails, an infinite one", slopes == (-sp.oo, -sp.oo))
    proved.equal(
        "IIIb holds for ℓ = (theta - φ)²/2: ∂²ℓ/∂φ∂theta = -1", sp.diff((theta - phi) ** 2 / 2, theta, phi), -1
    )

    u, w, d, kappa, slope = real("u w d kappa slope")
    loss = phi * u + d * w + kappa * u * w
    for J in (1, 2, 3):
        A_loss, total = coupled(loss, u, w, slope, J)
        label = f"ℓ = φ·u + d·w + κ·u·w, L_val(w), SGD, J = {J}"
        proved.equal(f"{label}: A_loss = dL_val/dφ", A_loss, total)
        proved.equal(f"{label}: A_loss = 0 for the linear loss κ = 0", A_loss.subs(kappa, 0), 0)
        if J < 3:
            claim = {1: zero, 2: kappa * lr**2 * slope}[J]
            proved.equal(
                f"{label}: A_loss = {'κ·lr²·∂L_val/∂w' if J == 2 else '0: one step has no later gradient'}",
                A_loss,
                claim,
            )
    linear = phi * u + d * w
    A_loss, _ = coupled(linear, w, u, slope, 3)  # the same linear loss, judged by u
    proved.equal(
        "ℓ = φ·u + d·w, L_val(u), SGD, J = 3: A_loss = -3·lr·∂L_val/∂u by line 13 alone", A_loss, -3 * lr * slope
    )


def coupled(loss: Expr, u: Symbol, w: Symbol, slope: Expr, J: int) -> tuple[Expr, Expr]:
    """A_loss by the sweep, and slope·dw_J/dφ by the composed steps, for plain SGD judged by w alone."""
    at = Matrix([u, w])
    gradient = Matrix([sp.diff(loss, each) for each in at])
    H, M = gradient.jacobian(at), gradient.jacobian(Matrix([phi]))
    eye, none = sp.eye(2), sp.zeros(2, 1)
    steps, point = [], at
    for _ in range(J):
        here = dict(zip(at, point, strict=True))
        blocks = {"T_theta": eye, "T_s": none, "T_phi": none, "T_G": -lr * eye, "U_theta": none.T, "U_s": sp.zeros(1)}
        blocks |= {"U_phi": sp.zeros(1), "U_G": none.T, "H": H.subs(here), "M": M.subs(here, simultaneous=True)}
        steps.append(Step(**blocks))
        point = point - lr * gradient.subs(here, simultaneous=True)
    start = sweep(steps, Adjoints(Matrix([[0, slope]]), sp.zeros(1)))[0]
    return sp.expand(start.A_loss), slope * sp.diff(point[1], phi)


def prove() -> list[str]:
    """Prove every statement; return them."""
    proved = Statements()
    prove_validation_loss(proved)
    prove_optimizer(proved)
    prove_hyperparameters(proved)
    prove_training_loss(proved)
    return proved


if __name__ == "__main__":
    run(prove)
