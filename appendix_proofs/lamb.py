"""LAMB (You et al. 2020).

    m' = beta1·m + (1 - beta1)·g,   v' = beta2·v + (1 - beta2)·g²,   g = ±G
    u = m'/(1 - beta1^t) / (sqrt(v'/(1 - beta2^t) + eps_root) + eps) + w·theta
    ratio = |theta| / |u|,   theta' = theta - lr·ratio·u

Theorem. For the adjoint B of theta', with p = -lr·<B, u>,

    u_bar = -lr·ratio·B - p·ratio/|u|²·u      and theta gets B + p/(|u|·|theta|)·theta  beside  w·u_bar

Proved for vectors of two symbols; then the shipped pullback is compared with sympy's gradient of whole steps.
"""

from __future__ import annotations

import sympy as sp

from appendix_proofs.coupled import check_coupled, matrix
from appendix_proofs.symbolic import Statements, run
from gimli_core.optimizers import LAMB

lr, beta1, beta2, eps, eps_root, weight_decay = sp.symbols("lr beta1 beta2 eps eps_root weight_decay", positive=True)


def norm(x: sp.Matrix) -> sp.Expr:
    """|x|."""
    return sp.sqrt(sum(e**2 for e in x))


def prove() -> list[str]:
    """Prove the theorem; return its statements."""
    proved = Statements()
    theta, u, B = matrix("w", 2, 1), matrix("u", 2, 1), matrix("b", 2, 1)
    L = (B.T * (theta - lr * norm(theta) / norm(u) * u))[0]
    sizes = sp.symbols("a c", positive=True)
    named = dict(zip((norm(theta), norm(u)), sizes, strict=True)) | {
        norm(x) ** 2: s**2 for x, s in zip((theta, u), sizes, strict=True)
    }
    p, ratio = -lr * (B.T * u)[0], sizes[0] / sizes[1]
    claims = {
        "u_bar = -lr·ratio·B - p·ratio/|u|²·u": (L.diff(u), -lr * ratio * B - p * ratio / sizes[1] ** 2 * u),
        "theta_bar = B + p/(|u|·|theta|)·theta": (L.diff(theta), B + p / (sizes[0] * sizes[1]) * theta),
    }
    for text, (found, claim) in claims.items():
        proved.equal(f"LAMB: {text}", found.subs(named), claim)
    for maximize in (False, True):
        theta, G, m, v = (matrix(name, 3, 1) for name in ("w", "g", "m", "v"))
        g = -G if maximize else G
        m1, v1 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g.applyfunc(lambda e: e**2)
        u = (
            sp.Matrix(
                [
                    a / (1 - beta1**3) / (sp.sqrt(c / (1 - beta2**3) + eps_root) + eps)
                    for a, c in zip(m1, v1, strict=True)
                ]
            )
            + weight_decay * theta
        )
        check_coupled(
            proved,
            f"LAMB(maximize={maximize})",
            LAMB(weight_decay=0.05, eps_root=0.01, maximize=maximize),
            {
                "theta": theta,
                "G": G,
                "exp_avg": m,
                "exp_avg_sq": v,
                "lr": lr,
                "beta1": beta1,
                "beta2": beta2,
                "eps": eps,
                "eps_root": eps_root,
                "weight_decay": weight_decay,
            },
            {"theta": theta - lr * norm(theta) / norm(u) * u, "exp_avg": m1, "exp_avg_sq": v1},
            {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "eps_root": 0.01, "weight_decay": 0.05},
        )
    return proved


if __name__ == "__main__":
    run(prove)
