"""Algorithm 1 as text: its lines, for the terminal and the page, and what each computes in words."""

from __future__ import annotations

__all__ = ["LINES", "MEANING"]

# (number, indent, text). Lines 11 to 14 are read with the optimizer's state, which makes them exact.
LINES: list[tuple[int, int, str]] = [
    (1, 0, "given θ₀, s₀, φ, steps J"),
    (2, 0, "φ_opt, φ_loss ← split φ"),
    (3, 0, "forward unroll"),
    (4, 0, "for j = 0 … J−1 do"),
    (5, 1, "G_j ← ∇θ ℓ_j(θ_j, φ_loss)"),
    (6, 1, "θ_j₊₁, s_j₊₁ ← opt(θ_j, s_j, φ_opt, G_j)"),
    (7, 0, "end for"),
    (8, 0, "A_opt ← 0;  A_loss ← ∂L_val/∂φ_loss"),
    (9, 0, "B_J ← ∇θ L_val(θ_J);  S_J ← 0"),
    (10, 0, "for j = J−1 … 0 do"),
    (11, 1, "V_j ← B_j₊₁·∂θ'/∂G + S_j₊₁·∂s'/∂G"),
    (12, 1, "A_opt += B_j₊₁·∂θ'/∂φ + S_j₊₁·∂s'/∂φ"),
    (13, 1, "A_loss += V_j·∇φ∇θ ℓ_j"),
    (14, 1, "B_j ← B_j₊₁·∂θ'/∂θ + S_j₊₁·∂s'/∂θ + V_j·∇²θ ℓ_j"),
    (15, 0, "end for"),
    (16, 0, "return A_opt, A_loss, B₀, S₀ joined"),
]

MEANING = {
    5: "the gradient of the inner loss",
    6: "the optimizer's step",
    8: "the validation loss, and its explicit part in φ_loss",
    9: "the adjoint of θ: how L_val changes with it",
    11: "the adjoint of the gradient G_j: the paper's B·O, and the state's share",
    12: "how step j used the optimizer's hyperparameters",
    13: "how step j's gradient used the loss's meta-parameters",
    14: "the adjoint one step earlier: through the optimizer, and through the curvature of the loss",
    16: "the meta-gradient",
}
