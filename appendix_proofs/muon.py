"""Muon, as in `torch.optim.Muon`, in exact arithmetic.

One Newton-Schulz step is X' = a·X + M·X with A = X·Xᵀ and M = b·A + c·A². For the adjoint Y of X', and M_bar = Y·Xᵀ,

    A_bar = b·M_bar + c·(M_bar·Aᵀ + Aᵀ·M_bar)
    X_bar = a·Y + Mᵀ·Y + (A_bar + A_barᵀ)·X
    a_bar = <Y, X>,   b_bar = <M_bar, A>,   c_bar = <M_bar, A²>

and for X = U / |U|, U_bar = (X_bar - <X_bar, X>·X) / |U|. Theorem: these are the gradients of <Y, X'>. Proved for
matrices of 2 by 2 symbols, as identities of polynomials; then the shipped pullback of whole steps is compared with
sympy's gradient.
"""

from __future__ import annotations

import sympy as sp

from appendix_proofs.coupled import check_coupled, matrix
from appendix_proofs.symbolic import Statements, run
from gimli_core.optimizers import Muon

a, b, c = sp.symbols("a b c", real=True)
lr, momentum, weight_decay, eps = sp.symbols("lr momentum weight_decay eps", positive=True)


def newton_schulz(X: sp.Matrix) -> sp.Matrix:
    """One step."""
    A = X * X.T
    return a * X + (b * A + c * A * A) * X


def inner(x: sp.Matrix, y: sp.Matrix) -> sp.Expr:
    """<x, y>."""
    return sum(x.multiply_elementwise(y))


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    X, Y, U = matrix("x", 2, 2), matrix("y", 2, 2), matrix("u", 2, 2)
    L = inner(Y, newton_schulz(X))
    A, M_bar = X * X.T, Y * X.T
    M = b * A + c * A * A
    A_bar = b * M_bar + c * (M_bar * A.T + A.T * M_bar)
    proved.equal("Muon: X_bar = a·Y + Mᵀ·Y + (A_bar + A_barᵀ)·X", L.diff(X), a * Y + M.T * Y + (A_bar + A_bar.T) * X)
    proved.equal("Muon: a_bar = <Y, X>", sp.diff(L, a), inner(Y, X))
    proved.equal("Muon: b_bar = <Y·Xᵀ, A>", sp.diff(L, b), inner(M_bar, A))
    proved.equal("Muon: c_bar = <Y·Xᵀ, A²>", sp.diff(L, c), inner(M_bar, A * A))
    size = sp.Symbol("size", positive=True)
    norm = sp.sqrt(sum(u**2 for u in U))
    shown = (inner(Y, U / norm)).diff(U).subs(norm, size).subs(norm**2, size**2)
    claim = (Y - inner(Y, U / size) * U / size) / size
    proved.equal("Muon: U_bar = (X_bar - <X_bar, X>·X) / |U|", shown, claim)
    for nesterov in (False, True):
        for rows, columns in ((2, 2), (3, 2)):
            theta, G, buffer = (matrix(name, rows, columns) for name in ("w", "g", "m"))
            m1 = momentum * buffer + (1 - momentum) * G
            update = momentum * m1 + (1 - momentum) * G if nesterov else m1
            X_0 = update.T if rows > columns else update
            X_1 = newton_schulz(X_0 / sp.sqrt(sum(u**2 for u in X_0)))
            moved = X_1.T if rows > columns else X_1
            check_coupled(
                proved,
                f"Muon(nesterov={nesterov}, ns_steps=1), {rows} by {columns}",
                Muon(nesterov=nesterov, ns_steps=1),
                {
                    "theta": theta,
                    "G": G,
                    "momentum_buffer": buffer,
                    "lr": lr,
                    "weight_decay": weight_decay,
                    "momentum": momentum,
                    "ns_a": a,
                    "ns_b": b,
                    "ns_c": c,
                },
                {
                    "theta": theta * (1 - lr * weight_decay) - lr * sp.sqrt(max(1, sp.Rational(rows, columns))) * moved,
                    "momentum_buffer": m1,
                },
                {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.8, "ns_a": 3.4445, "ns_b": -4.775, "ns_c": 2.0315},
            )
    return proved


if __name__ == "__main__":
    run(prove)
