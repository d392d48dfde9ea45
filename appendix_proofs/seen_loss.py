"""A rule that sees the loss: what its value adds to lines 13 and 14.

As in augmented_state.py, but that the step is also a function of the loss's value l_j = ℓ_j(theta_j, λ):
theta_{j+1} = T_j(theta_j, s_j, φ, G_j, l_j) and s_{j+1} = U_j(theta_j, s_j, φ, G_j, l_j), with G_j = ∂ℓ_j/∂theta.

    V      = B·∂T_j/∂G + S·∂U_j/∂G                                             line 11
    g      = B·∂T_j/∂l + S·∂U_j/∂l
    A_opt  += B·∂T_j/∂φ + S·∂U_j/∂φ                                            line 12
    A_loss += V·∂G_j/∂λ + g·∂ℓ_j/∂λ                                            line 13
    B, S    = B·∂T_j/∂theta + S·∂U_j/∂theta + V·H_j + g·G_j,  B·∂T_j/∂s + S·∂U_j/∂s    line 14

Theorem. For smooth T_j, U_j, ℓ_j, L_val, any J and any dimensions: A_opt = dL_val/dφ, A_loss = dL_val/dλ,
B_0 = dL_val/dtheta_0, S_0 = dL_val/ds_0. Without the two terms of g the sweep misses what L_val owes to the loss's
value. Proof by induction as there: the case J = 1 below is the step of the induction, for an undefined W; ∂ℓ_j/∂theta
is G_j itself, the function that line 5 computes, so that B's new term needs no derivative that is not there already.
J = 2 is unrolled besides, and dimension 2 shows the order of the factors.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import sympy as sp
from sympy import Expr, Matrix

from appendix_proofs.augmented_state import lam, phi, undefined
from appendix_proofs.symbolic import Statements, run, smooth


class Step(NamedTuple):
    """The partial derivatives of one inner step that sees its loss, at its point of the trajectory."""

    T: tuple[Matrix, ...]  # by theta, s, φ, G, l
    U: tuple[Matrix, ...]
    G: Matrix
    H: Matrix
    M: Matrix
    loss_by_lam: Expr


def prove() -> list[str]:
    proved = Statements()
    for J, n, m in ((1, 1, 1), (1, 2, 1), (2, 1, 1)):
        label = f"J = {J}, theta in R^{n}, s in R^{m}"
        theta_0, s_0, steps, value, end = system(J, n, m)
        B, S, A_opt, A_loss = sweep(steps, *end)
        by_theta = Matrix([[sp.diff(value, x) for x in theta_0]])
        proved.equal(f"{label}, the loss seen: B_0 = dW/dtheta_0", B, by_theta)
        proved.equal(f"{label}, the loss seen: S_0 = dW/ds_0", S, Matrix([[sp.diff(value, x) for x in s_0]]))
        proved.equal(f"{label}, the loss seen: A_opt = dW/dφ_opt", A_opt, sp.diff(value, phi))
        proved.equal(f"{label}, the loss seen: A_loss = dW/dφ_loss", A_loss, sp.diff(value, lam))
    return proved


def system(J: int, n: int, m: int) -> tuple[Any, Any, list[Step], Expr, tuple[Matrix, Matrix, Expr, Expr]]:
    """(theta_0, s_0, J steps, the value W(theta_J, s_J, φ, λ), its adjoints), all undefined functions."""
    theta_0, s_0 = sp.symbols(f"theta:{n}"), sp.symbols(f"s:{m}")
    theta, s, steps = theta_0, s_0, []
    for j in range(J):
        loss, G, M_H, by_lam = undefined_loss(j, (*theta, lam))
        z, dz = undefined(
            [f"T{j}_{i}" for i in range(n)] + [f"U{j}_{i}" for i in range(m)], (*theta, *s, phi, *G, loss)
        )
        theta, s = z[:n], z[n:]
        cuts = [0, n, n + m, n + m + 1, 2 * n + m + 1, 2 * n + m + 2]
        columns = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        T, U = (tuple(dz[rows, column] for column in columns) for rows in (slice(0, n), slice(n, None)))
        steps.append(Step(T, U, Matrix([G]), M_H[:, :n], M_H[:, n:], by_lam))
    (value,), dW = undefined(["W"], (*theta, *s, phi, lam))
    return theta_0, s_0, steps, value, (dW[:, :n], dW[:, n : n + m], dW[-2], dW[-1])


def undefined_loss(j: int, at: tuple[Expr, ...]) -> tuple[Expr, list[Expr], Matrix, Expr]:
    """An undefined ℓ_j(theta, λ): its value, G_j = ∂ℓ_j/∂theta, (H_j, M_j), and ∂ℓ_j/∂λ."""
    n = len(at) - 1
    second = [[sp.Function(f"d2l{j}_{i}_{k}") for k in range(n + 1)] for i in range(n)]
    gradient = [smooth(f"G{j}_{i}", *row) for i, row in enumerate(second)]
    by_lam = sp.Function(f"dl{j}_dlam")
    loss = smooth(f"l{j}", *gradient, by_lam)
    return loss(*at), [G(*at) for G in gradient], Matrix([[f(*at) for f in row] for row in second]), by_lam(*at)


def sweep(steps: list[Step], B: Matrix, S: Matrix, A_opt: Expr, A_loss: Expr) -> tuple[Matrix, Matrix, Expr, Expr]:
    """Lines 10-15 of a rule that sees the loss."""
    for step in reversed(steps):
        by_theta, by_s, by_phi, V, g = (B * T + S * U for T, U in zip(step.T, step.U, strict=True))
        A_opt += by_phi[0]
        A_loss += (V * step.M)[0] + g[0] * step.loss_by_lam
        B, S = by_theta + V * step.H + g[0] * step.G, by_s
    return B, S, A_opt, A_loss


if __name__ == "__main__":
    run(prove)
