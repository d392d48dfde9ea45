"""Adafactor, as in `torch.optim.Adafactor`, for a matrix, with each maximum and minimum on either side.

    w = t^beta2_decay,   R' = R + w·(row means of g² - R),   C' = C + w·(column means of g² - C)
    v = R'·C' / mean(R'),   u = g / sqrt(v),   theta' = theta·(1 - lr·decay) - alpha·u / (rms(u) / d  or  1)
    alpha = (rms(theta)  or  eps2)·(lr  or  1 / sqrt(t))

The rule is smooth where no maximum ties. sympy differentiates these equations for a 3 by 2 matrix of symbols on each
side; the shipped pullback is compared with that gradient.
"""

from __future__ import annotations

import itertools

import sympy as sp

from appendix_proofs.coupled import check_coupled, matrix
from appendix_proofs.symbolic import Statements, run
from gimli_core.optimizers import Adafactor

lr, eps2, d, weight_decay = sp.symbols("lr eps2 d weight_decay", positive=True)
(beta2_decay,) = sp.symbols("beta2_decay,", real=True)
ROWS, COLUMNS, T = 3, 2, 3


def rms(x: sp.Matrix) -> sp.Expr:
    """Root of the mean square."""
    return sp.sqrt(sum(e**2 for e in x) / len(x))


def prove() -> list[str]:
    """Compare every side; return the statements."""
    proved = Statements()
    theta, G = matrix("w", ROWS, COLUMNS), matrix("g", ROWS, COLUMNS)
    R, C = matrix("r", ROWS, 1), matrix("c", 1, COLUMNS)
    w = T**beta2_decay
    square = G.applyfunc(lambda e: e**2)
    R1 = R + w * (sp.Matrix(ROWS, 1, lambda i, _: sum(square.row(i)) / COLUMNS) - R)
    C1 = C + w * (sp.Matrix(1, COLUMNS, lambda _, j: sum(square.col(j)) / ROWS) - C)
    v = R1 * C1 / (sum(R1) / ROWS)
    u = sp.Matrix(ROWS, COLUMNS, lambda i, j: G[i, j] / sp.sqrt(v[i, j]))
    for clipped, large, small in itertools.product((True, False), repeat=3):
        # d, eps2 and lr decide the sides: their numbers below are far from every tie.
        alpha = (rms(theta) if large else eps2) * (lr if small else 1 / sp.sqrt(T))
        denom = rms(u) / d if clipped else sp.Integer(1)
        check_coupled(
            proved,
            f"Adafactor, {'clipped' if clipped else 'not clipped'}, {'rms(theta)' if large else 'eps2'}, "
            f"{'lr' if small else '1/sqrt(t)'}",
            Adafactor(weight_decay=0.05),
            {
                "theta": theta,
                "G": G,
                "row_var": R,
                "col_var": C,
                "lr": lr,
                "beta2_decay": beta2_decay,
                "eps2": eps2,
                "d": d,
                "weight_decay": weight_decay,
            },
            {"theta": theta * (1 - lr * weight_decay) - alpha / denom * u, "row_var": R1, "col_var": C1},
            {
                "lr": 0.1 if small else 5.0,
                "beta2_decay": -0.8,
                "eps2": 1e-3 if large else 50.0,
                "d": 1e-2 if clipped else 50.0,
                "weight_decay": 0.05,
            },
            step=T - 1,
        )
    return proved


if __name__ == "__main__":
    run(prove)
