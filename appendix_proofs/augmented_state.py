"""Algorithm 1 with optimizer state: the recurrence on z = (theta, s), and what theta alone misses.

Let theta_{j+1} = T_j(theta_j, s_j, φ, G_j) and s_{j+1} = U_j(theta_j, s_j, φ, G_j) with
G_j = G_j(theta_j, λ) the inner gradient, H_j = ∂G_j/∂theta and M_j = ∂G_j/∂λ; φ = phi_opt, λ = phi_loss.
Row vectors B_j and S_j, and line numbers of Algorithm 1:

    A_opt = 0;  A_loss = ∂L_val/∂λ;  B_J = ∂L_val/∂theta_J;  S_J = 0            lines 8, 9
    V      = B·∂T_j/∂G + S·∂U_j/∂G                                             line 11
    A_opt  += B·∂T_j/∂φ + S·∂U_j/∂φ                                            line 12
    A_loss += V·M_j                                                            line 13
    B, S    = B·∂T_j/∂theta + S·∂U_j/∂theta + V·H_j,  B·∂T_j/∂s + S·∂U_j/∂s    line 14

Theorem 1. For smooth T_j, U_j, G_j, L_val, any J and any dimensions: A_opt = dL_val/dφ,
A_loss = dL_val/dλ, B_0 = dL_val/dtheta_0, S_0 = dL_val/ds_0.
Proof by induction on the value functions W_J = L_val(theta, λ), W_j(theta, s, φ, λ) = W_{j+1}(T_j, U_j, φ, λ):
lines 11-14 turn the gradient of any W_{j+1} into that of W_j. That is the case J = 1 below, for an undefined W;
J = 2 and 3 are unrolled besides, and dimension 2 shows the order of the factors. Opt and losses are undefined
functions throughout, so nothing about a rule is assumed. Losses along the way, w_j·L_val(theta_j), add w_j·∇L_val to
B_j and w_j·∂L_val/∂λ to A_loss, by the sum rule.

Theorem 2. With theta alone (S = 0 throughout) B_0 misses exactly

    B_0 - B_0[theta only] = Σ_j S_{j+1}·(∂U_j/∂theta + ∂U_j/∂G·H_j)·Π_{i<j} (∂T_i/∂theta + ∂T_i/∂G·H_i),

later factors on the left. It is exact where no S arises: a stateless rule, or J = 1.

Theorem 3. The smallest case where it fails is J = 2: SGD with momentum μ from b_0 = 0 on ℓ = h·theta²/2. With
r = 1 - lr·h,

    true:  dtheta_2/dtheta_0 = r² - lr·μ·h          theta only: r²

and for J steps the true derivative p_J obeys p_0 = 1, p_1 = r, p_{J+1} = (r + μ)·p_J - μ·p_{J-1}, so that with ρ, σ the
roots of z² - (r + μ)·z + μ

    missed = B_J·(p_J - r^J),   p_J = [(r - σ)·ρ^J - (r - ρ)·σ^J] / (ρ - σ).

To first order in lr this is -lr·h·B_J·(E_J - J) with E_J = Σ_{i=1..J} (1 - μ^i)/(1 - μ): J steps with momentum go as
far as E_J ≈ J/(1 - μ) plain ones, and theta alone counts J of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sympy as sp
from sympy import Expr, Matrix

from appendix_proofs.exact import Exact
from appendix_proofs.symbolic import Statements, lr, momentum, run, smooth
from gimli_core.optimizers import SGD

phi, lam, h, theta_0, b_0 = sp.symbols("phi lambda h theta_0 b_0", real=True)


class Step(NamedTuple):
    """The partial derivatives of one inner step, at its point of the trajectory."""

    T_theta: Matrix
    T_s: Matrix
    T_phi: Matrix
    T_G: Matrix
    U_theta: Matrix
    U_s: Matrix
    U_phi: Matrix
    U_G: Matrix
    H: Matrix
    M: Matrix


class Adjoints(NamedTuple):
    """Row vectors B, S and the running sums of lines 12 and 13."""

    B: Matrix
    S: Matrix
    A_opt: Expr = sp.Integer(0)
    A_loss: Expr = sp.Integer(0)


def sweep(steps: Sequence[Step], end: Adjoints, theta_only: bool = False) -> list[Adjoints]:
    """Lines 10-15: the adjoints at every j = 0 ... J; with `theta_only` that of the state is dropped."""
    along = [end]
    for step in reversed(steps):
        B, S, A_opt, A_loss = along[0]
        S = 0 * S if theta_only else S
        V = B * step.T_G + S * step.U_G
        A_opt += (B * step.T_phi + S * step.U_phi)[0]
        A_loss += (V * step.M)[0]
        B, S = B * step.T_theta + S * step.U_theta + V * step.H, B * step.T_s + S * step.U_s
        along.insert(0, Adjoints(B, S, A_opt, A_loss))
    return along


class Undefined:
    """J inner steps and a value W(theta_J, s_J, φ, λ), all undefined functions; theta in R^n, s in R^m."""

    def __init__(self, J: int, n: int, m: int) -> None:
        theta, s = self.theta_0, self.s_0 = sp.symbols(f"theta:{n}"), sp.symbols(f"s:{m}")
        self.steps = []
        for j in range(J):
            G, dG = undefined([f"G{j}_{i}" for i in range(n)], (*theta, lam))
            z, dz = undefined([f"T{j}_{i}" for i in range(n)] + [f"U{j}_{i}" for i in range(m)], (*theta, *s, phi, *G))
            theta, s = z[:n], z[n:]
            columns = (slice(0, n), slice(n, n + m), slice(n + m, n + m + 1), slice(n + m + 1, None))
            blocks: Any = [dz[rows, column] for rows in (slice(0, n), slice(n, None)) for column in columns]
            self.steps.append(Step(*blocks, dG[:, :n], dG[:, n:]))
        (self.value,), dW = undefined(["W"], (*theta, *s, phi, lam))
        self.end = Adjoints(dW[:, :n], dW[:, n : n + m], A_opt=dW[-2], A_loss=dW[-1])


def undefined(names: Sequence[str], at: Sequence[Expr]) -> tuple[list[Expr], Matrix]:
    """Undefined functions of these names at one point, and the matrix of their partial derivatives."""
    partials = [[sp.Function(f"d{name}_d{i}") for i in range(len(at))] for name in names]
    values = [smooth(name, *row)(*at) for name, row in zip(names, partials, strict=True)]
    return values, Matrix([[f(*at) for f in row] for row in partials])


def prove_undefined(proved: Statements, J: int, n: int, m: int) -> None:
    """Theorems 1 and 2 for J steps, by total derivatives of the nested functions."""
    label = f"J = {J}, theta in R^{n}, s in R^{m}"
    system = Undefined(J, n, m)
    along = sweep(system.steps, system.end)
    for name, start, found in (("B", "theta", along[0].B), ("S", "s", along[0].S)):
        total = Matrix([[sp.diff(system.value, symbol) for symbol in getattr(system, f"{start}_0")]])
        proved.equal(f"{label}: {name}_0 = dW/d{start}_0", found, total)
    proved.equal(f"{label}: A_opt = dW/dφ_opt", along[0].A_opt, sp.diff(system.value, phi))
    proved.equal(f"{label}: A_loss = dW/dφ_loss", along[0].A_loss, sp.diff(system.value, lam))
    alone = sweep(system.steps, system.end, theta_only=True)
    missed, product = sp.zeros(1, n), sp.eye(n)
    for step, after in zip(system.steps, along[1:], strict=True):
        missed += after.S * (step.U_theta + step.U_G * step.H) * product
        product = (step.T_theta + step.T_G * step.H) * product
    proved.equal(f"{label}: what theta alone misses in B_0 is the sum of Theorem 2", along[0].B - alone[0].B, missed)


def prove_initial_state(proved: Statements) -> None:
    """s_0 = s_0(φ_opt), as in Adagrad."""
    initial = sp.Function("s_0")(phi)
    (W,), (_, S_0, direct, _) = undefined(["W"], (theta_0, initial, phi, lam))
    statement = "an initial state s_0(φ_opt) adds S_0·ds_0/dφ_opt to A_opt"
    proved.equal(statement, direct + S_0 * sp.diff(initial, phi), sp.diff(W, phi))


def momentum_steps(J: int) -> list[Expr]:
    """p_0 ... p_J: dtheta_j/dtheta_0 of SGD with momentum on ℓ = h·theta²/2, by the forward equations."""
    theta, b = [theta_0], sp.Integer(0)
    for _ in range(J):
        b = momentum * b + h * theta[-1]
        theta.append(theta[-1] - lr * b)
    return [sp.expand(sp.diff(value, theta_0)) for value in theta]


def prove_counterexample(proved: Statements) -> None:
    """Theorem 3."""
    r, p = 1 - lr * h, momentum_steps(8)
    blocks = {"T_theta": 1, "T_s": -lr * momentum, "T_G": -lr, "U_s": momentum, "U_G": 1, "H": h}
    step = Step(*(Matrix([[blocks.get(name, 0)]]) for name in Step._fields))
    end = Adjoints(Matrix([[1]]), Matrix([[0]]))
    proved.equal("momentum, J = 2: dtheta_2/dtheta_0 = r² - lr·μ·h", p[2], r**2 - lr * momentum * h)
    for J in (1, 2, 3, 8):
        (exact, *_), (alone, *_) = (sweep([step] * J, end, theta_only) for theta_only in (False, True))
        proved.equal(f"momentum, J = {J}: with the state's adjoint B_0 = p_J", exact.B[0], p[J])
        proved.equal(f"momentum, J = {J}: theta alone gives r^J", alone.B[0], r**J)
    proved.equal("momentum, J = 1: theta alone is exact, p_1 = r", p[1], r)

    Z = Matrix([[r, -lr * momentum], [h, momentum]])  # (theta, b) in one step
    square = (r + momentum) * Z - momentum * sp.eye(2)
    proved.equal("the step matrix obeys Z² = (r + μ)·Z - μ, so p_(J+1) = (r + μ)·p_J - μ·p_(J-1)", Z**2, square)
    rho, sigma, z = sp.symbols("rho sigma z")
    p_0, p_1 = (((r - sigma) * rho**J - (r - rho) * sigma**J) / (rho - sigma) for J in (0, 1))
    proved.equal("p_J = [(r - σ)·ρ^J - (r - ρ)·σ^J]/(ρ - σ) is 1 at J = 0", p_0, 1)
    proved.equal("and r at J = 1", p_1, r)
    left = z**2 - (rho + sigma) * z + rho * sigma  # z^(1-J) times what the recurrence leaves of z^J
    proved.equal("and ρ^J and σ^J obey the recurrence, as ρ + σ = r + μ and ρ·σ = μ", left, (z - rho) * (z - sigma))
    for J in (2, 5, 8):
        E_J = sum(sum(momentum**i for i in range(n)) for n in range(1, J + 1))
        first_order = sp.diff(p[J] - r**J, lr).subs(lr, 0)
        proved.equal(
            f"momentum, J = {J}: to first order in lr, p_J - r^J = -lr·h·(E_J - J)", first_order, -h * (E_J - J)
        )
    numbers = {lr: sp.Rational(1, 10), momentum: sp.Rational(9, 10), h: 1}
    two, eight = (p[J].subs(numbers) for J in (2, 8))
    proved.equal("lr = 0.1, μ = 0.9, h = 1, J = 2: 0.72 is true, theta alone gives 0.81", two, sp.Rational(18, 25))
    proved.holds(f"and J = 8: {float(eight):.2f} is true, theta alone gives {0.9**8:.2f}, of the wrong sign", eight < 0)


def prove_shipped(proved: Statements) -> None:
    """The shipped SGD on symbols, chained over J = 2 and 3 steps by lines 9-14."""
    optimizer: Any = SGD(momentum=0.9)
    values = {"lr": lr, "momentum": momentum, "dampening": 0, "weight_decay": 0}
    hyper = {"w": {name: Exact(value) for name, value in values.items()}}
    for J in (2, 3):
        theta, state = {"w": Exact(theta_0)}, {"step": Exact(0), "momentum_buffer": {"w": Exact(0)}}
        record = []
        for _ in range(J):
            G = {"w": theta["w"] * h}
            record.append((theta, state, G))
            theta, state = optimizer.step(theta, state, G, hyper)
        B, S = {"w": Exact(1)}, {"momentum_buffer": {"w": Exact(0)}}
        for theta_j, state_j, G_j in reversed(record):
            pulled = optimizer.pullback(theta_j, state_j, G_j, hyper, B, S, [])
            B, S = {"w": pulled.B["w"] + pulled.V["w"] * h}, pulled.S
        proved.equal(f"the shipped SGD, chained over J = {J} steps: B_0 = p_J", B["w"].expr, momentum_steps(J)[J])


def prove() -> list[str]:
    """Prove the three theorems; return their statements."""
    proved = Statements()
    for J, n, m in ((1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 1), (3, 1, 1)):
        prove_undefined(proved, J, n, m)
    prove_initial_state(proved)
    prove_counterexample(proved)
    prove_shipped(proved)
    return proved


if __name__ == "__main__":
    run(prove)
