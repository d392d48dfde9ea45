"""Section 2.4 as printed: requirements I to III, what must exist besides, and when they hold.

Notation: G_t = ∇_θ ℓ_t, M_t = ∇_φ ∇_θ ℓ_t, H_t = ∇²ℓ_t. What fails with each requirement is in requirements.py.

Theorem 0 (III). "Either or both" is right of each part of φ by itself: ∇_{φ_opt} L_val has no M_t in it, so IIIb is not
asked for it, and ∇_{φ_loss} L_val no ∂opt/∂φ_opt. A φ that has both parts needs both.

Theorem 1. That ∇_{θ_i} θ_{i+1} exists needs more than requirement II: H_i must exist too, and i must run from t on,
that is from 0 for θ_0 where [1, T] is printed. For SGD on ℓ = (2/3)·|θ - φ|^(3/2) the requirements I and II and every
first derivative of L_train and L_val hold at θ_0 = φ, and neither ∇_{θ_0} θ_1 nor ∇_φ L_val exists.

Theorem 2 (IIIb). The derivative in its parenthesis, ∇_{φ_loss} ℓ, is the wrong one: it is neither enough nor needed
for ∇_{φ_loss} G. The correction is ∇_{φ_loss} ∇_θ ℓ, as Section 2.4 itself has it further down and line 13 uses it.
There, that ℓ = f(φ·θ) meets IIIb holds for f with a second derivative; and for MAML's φ = θ_0, ∇_φ G_0 is the Hessian
H_0, whose existence is what is needed: it may well be 0 (L_val then reaches θ_0 through B alone). At later steps
∇_φ G_t = H_t·∇_φ θ_t, so that H_t is enough, but not needed: one SGD step with lr·h = 1 on h·θ²/2 ends at 0 for every
θ_0, where ℓ_1 = (2/3)·|θ|^(3/2) has no Hessian, and G_1 = 0 is a constant.

Theorem 3 (II for SGD and Adagrad). Appendix A differentiates by φ and θ_t; II asks for θ and G. By G SGD has -α and
Adagrad -η/√Σ + η·G²/Σ^(3/2), where Σ > 0. Where Σ = 0, which a first gradient of 0 gives, Adagrad as printed is not
defined, and it tends to η on one side and to -η on the other.
"""

from __future__ import annotations

import sympy as sp
from sympy import Matrix

from appendix_proofs.printed import Chain, Printed, lam, phi
from appendix_proofs.printed_appendix import adagrad
from appendix_proofs.printed_training import sgd
from appendix_proofs.requirements import one_sided
from appendix_proofs.symbolic import G, Statements, lr, positive, run, theta, x

PRINTED = (
    Printed(
        "Section 2.4, requirement I",
        "∇_{θ*} L_val(θ*) exists",
        "holds if",
        "it is read as needed; it is not enough: at slope 0 nothing passes",
        proof="requirements",
        begins="I ",
    ),
    Printed(
        "Section 2.4, requirement II",
        "opt_t is a differentiable function of θ and G",
        "holds if",
        "it is read as needed; besides, G_t must be differentiable in θ_t, and a state is an argument (footnote 2)",
        proof="requirements",
        begins="II ",
    ),
    Printed(
        "Section 2.4, requirement III",
        "IIIa or IIIb or both",
        "holds if",
        "φ has one part only; of two parts each needs its own",
    ),
    Printed(
        "Section 2.4, requirement IIIa",
        "there are continuous α ⊆ φ_opt, and opt_t is a differentiable function of φ_opt",
        "holds if",
        "it is read as needed; a derivative may exist and be 0",
        proof="requirements",
        begins="IIIa ",
    ),
    Printed(
        "Section 2.4, requirement IIIb",
        "for one or more t G_t is a function of φ_loss, i.e. ∇_{φ_loss} ℓ(θ, φ_loss) exists",
        "misprint",
        "∇_{φ_loss} ∇_θ ℓ(θ, φ_loss) exists, as further down in 2.4; the printed is neither enough nor needed",
    ),
    Printed(
        "Section 2.4, the claim after III",
        "first derivatives of L_val in θ and of L_train in θ and φ give ∇_φ L_val",
        "fails",
        "the second derivatives ∇_θ ∇_θ ℓ and ∇_φ ∇_θ ℓ are needed as well",
    ),
    Printed(
        "Section 2.4, first list, item 2, the condition",
        "∇_{θ_i} θ_{i+1} exists for all i ∈ [1, T], by requirement II",
        "misprint",
        "for all i ∈ [t, T], so from 0 for θ_0; and by requirement II together with the existence of ∇²ℓ_i",
    ),
    Printed(
        "Section 2.4, when II holds",
        "II holds for SGD and for Adagrad, proved in Appendix A",
        "holds if",
        "Adagrad's Σ > 0; the derivatives by G, not in Appendix A, are -α and -η/√Σ + η·G_t²/Σ^(3/2)",
    ),
    Printed(
        "Section 2.4, when IIIb holds",
        "∇_{θ_t} ℓ_t(θ_t, φ_loss) exists and is differentiable in φ; usually so where φ multiplies θ_t",
        "holds if",
        "ℓ has a second derivative in the product φ·θ_t",
    ),
    Printed(
        "Section 2.4, when IIIb holds, MAML",
        "for φ = θ_0 it is equivalent to the existence of the Hessian of ℓ with regard to θ",
        "holds if",
        "t = 0; at later steps it is enough, and not needed where θ_t does not move with θ_0. "
        "The Hessian may well be 0, against the parenthesis in Section 3.1",
    ),
)


def prove_existence(proved: Statements) -> None:
    """Theorem 1, and what IIIb needs."""
    loss = sp.Rational(2, 3) * sp.sqrt(sp.Abs(theta - phi)) ** 3
    G = sp.sign(theta - phi) * sp.sqrt(sp.Abs(theta - phi))
    (u,) = sp.symbols("u", positive=True, seq=True)
    for sign in (1, -1):
        at = {theta: phi + sign * u}
        slope = sp.diff(sp.Rational(2, 3) * (sign * (theta - phi)) ** sp.Rational(3, 2), theta)
        if sp.simplify((slope - G).subs(at)) != 0:
            raise AssertionError("not proved: the gradient of (2/3)·|θ - φ|^(3/2)")
    kink, moved = "ℓ = (2/3)·|θ - φ|^(3/2) at θ_0 = φ = 0", theta - lr * G
    after, claim = "Section 2.4, first list, item 2, the condition", "Section 2.4, the claim after III"
    for name, by, other in (("θ", theta, phi), ("φ", phi, theta)):
        slopes = one_sided(loss.subs(other, 0), by, sp.Integer(0))
        proved.holds(f"{claim}: {kink} has ∇_{name} ℓ = 0", slopes == (0, 0))
    slopes = one_sided(moved.subs(phi, 0), theta, sp.Integer(0))
    proved.holds(
        f"{after}: {kink}, SGD: II holds, ∇_(θ_0) θ_1 does not exist, its quotient is -∞", slopes == (-sp.oo,) * 2
    )
    slopes = one_sided(moved.subs(theta, 0), phi, sp.Integer(0))
    proved.holds(
        f"{claim}: {kink}, SGD, L_val = θ_1: ∇_φ L_val does not exist, its quotient is +∞", slopes == (sp.oo,) * 2
    )

    third, when = "Section 2.4, requirement IIIb", "Section 2.4, when IIIb holds"
    slopes = one_sided(G.subs(theta, 0), phi, sp.Integer(0))
    proved.holds(f"{third}: not enough: {kink}, ∇_φ ℓ = 0 exists and ∇_φ G does not", slopes == (-sp.oo,) * 2)
    apart = sp.Function("l")(theta) + sp.Function("c")(phi)
    proved.equal(f"{third}: not enough: ℓ = l(θ) + c(φ) has ∇_φ ℓ, and its G no φ", sp.diff(apart, theta, phi), 0)
    slopes = one_sided((theta * phi + sp.Abs(phi)).subs(theta, 0), phi, sp.Integer(0))
    proved.holds(
        f"{third}: not needed: ℓ = φ·θ + |φ| has no ∇_φ ℓ at φ = 0, its slopes are 1 and -1", slopes == (1, -1)
    )
    proved.equal(f"{third}: not needed: and its G = φ has ∇_φ G = 1", sp.diff(theta * phi + sp.Abs(phi), theta, phi), 1)
    f, l, z = sp.Function("f"), sp.Function("l")(theta), sp.Symbol("z")  # noqa: E741 - a loss
    first, second = (sp.diff(f(z), z, order).subs(z, phi * theta) for order in (1, 2))
    mixed = sp.diff(f(phi * theta), theta, phi).doit()
    proved.equal(f"{when}: ℓ = f(φ·θ) has ∇_φ ∇_θ ℓ = f' + φ·θ·f''", mixed, first + phi * theta * second)
    proved.equal(f"{when}: ℓ = φ·l(θ) has ∇_φ ∇_θ ℓ = l'", sp.diff(phi * l, theta, phi), sp.diff(l, theta))


def prove_either(proved: Statements) -> None:
    """Theorem 0."""
    where = "Section 2.4, requirement III"
    for T in (0, 1):
        chain = Chain(range(T + 1))
        by_opt, by_loss = chain.total([phi])[0], chain.total([lam])[0]
        opt_slopes = [step.phi[0].func for step in chain.local]
        mixed = [step.M[0].func for step in chain.local]
        proved.holds(
            f"{where}: T = {T}: ∇_(φ_opt) L_val has ∂opt/∂φ_opt of every step, and no M",
            all(by_opt.has(f) for f in opt_slopes) and not by_opt.has(*mixed),
        )
        proved.holds(
            f"{where}: T = {T}: ∇_(φ_loss) L_val has M of every step, and no ∂opt/∂φ_opt",
            all(by_loss.has(f) for f in mixed) and not by_loss.has(*opt_slopes),
        )


def prove_rules(proved: Statements) -> None:
    """Theorem 3."""
    where, (g,) = "Section 2.4, when II holds", positive("g")
    step = sgd(theta, lr, G)
    proved.equal(f"{where}: SGD by θ is 1", sp.diff(step, theta), 1)
    proved.equal(f"{where}: SGD by G is -α", sp.diff(step, G), -lr)
    total = x + G**2  # x: the squares of the earlier gradients
    step = adagrad(theta, lr, G, total)
    claim = -lr / sp.sqrt(total) + lr * G**2 / total ** sp.Rational(3, 2)
    proved.equal(f"{where}: Adagrad, Σ > 0, by θ is 1", sp.diff(step, theta), 1)
    proved.equal(f"{where}: Adagrad, Σ > 0, by G is -η/√Σ + η·G²/Σ^(3/2)", sp.diff(step, G), claim)
    jump = [sp.limit(adagrad(0, lr, sign * g, g**2), g, 0) for sign in (1, -1)]
    proved.holds(f"{where}: Adagrad's first step has no limit at G = 0: -η and η", jump == [-lr, lr])


def prove_maml(proved: Statements) -> None:
    """Theorem 2, φ = θ_0."""
    where = "Section 2.4, when IIIb holds, MAML"
    for n in (1, 2):
        whole = Chain(range(1), n)
        by_start = whole.G[0].jacobian(Matrix(whole.start))
        proved.equal(f"{where}: ∇_φ G_0 is the Hessian H_0, θ in R^{n}", by_start, whole.local[0].H)
    slope, start = sp.symbols("slope theta_0")
    moved = start
    for _ in range(3):
        moved = moved - lr * slope  # ℓ = slope·θ
    proved.equal(f"{where}: of a linear ℓ, H = 0, SGD, dθ_3/dθ_0 = 1", sp.diff(moved, start), 1)
    whole = Chain(range(2))
    by_start, onward = (sp.diff(each, whole.start[0]) for each in (whole.G[1][0], whole.points[1][0]))
    proved.equal(f"{where}: ∇_φ G_1 = H_1·∇_φ θ_1", by_start, whole.local[1].H[0] * onward)
    (u,) = positive("u")
    theta_1 = sgd(start, 1 / u, u * start)  # h = u, lr = 1/u
    G_1 = sp.sign(theta) * sp.sqrt(sp.Abs(theta))
    slopes = one_sided(G_1, theta, sp.Integer(0))
    case = "ℓ_0 = h·θ²/2, lr·h = 1, ℓ_1 = (2/3)·|θ|^(3/2)"
    proved.holds(f"{where}: {case}: at θ_1 = 0 there is no Hessian, its quotient is ∞", slopes == (sp.oo,) * 2)
    proved.equal(f"{where}: {case}: and G_1 = 0 whatever θ_0 is", G_1.subs(theta, theta_1), 0)


def prove() -> list[str]:
    """Prove the theorems; return their statements."""
    proved = Statements()
    prove_either(proved)
    prove_existence(proved)
    prove_rules(proved)
    prove_maml(proved)
    return proved


if __name__ == "__main__":
    run(prove)
