"""Lesson 1: SGD on a two-dimensional quadratic, beside its closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, section

__all__ = ["quadratic"]

H = ((3.0, 1.0), (1.0, 2.0))
START, TARGET, LR, STEPS = (2.0, -1.0), (0.5, 0.25), 0.1, 8


def quadratic() -> Lesson:
    """ℓ = θᵀHθ/2 and L_val = ‖θ − t‖²/2 with θ' = θ − lr·Hθ, so that everything has a closed form.

        θ_J = (I − lr·H)^J θ_0      B_0 = (θ_J − t)·(I − lr·H)^J      A_lr = −(θ_J − t)·J·H·(I − lr·H)^(J−1)·θ_0

    >>> import gimli_core as gimli
    >>> gimli.lessons.quadratic().verification.assert_ok()
    """
    matrix, target = torch.tensor(H, dtype=torch.float64), torch.tensor(TARGET, dtype=torch.float64)

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return theta["θ"] @ matrix @ theta["θ"] / 2

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((theta["θ"] - target) ** 2).sum() / 2

    return Lesson(
        name="quadratic",
        title="SGD on a quadratic, beside its closed form",
        summary="Two parameters, eight steps. Every number on this page can be checked with a pencil.",
        arguments={
            "problem": Problem(train_loss, val_loss, SGD(lr=LR)),
            "theta_0": {"θ": torch.tensor(START, dtype=torch.float64)},
            "train_batches": lambda j: None, "val_batch": None, "steps": STEPS, "phi_opt": {"lr": LR},
        },
        sections=[
            section(
                "Forwards: roll down the valley",
                """The inner loss is ½ θᵀHθ, so its gradient is G = Hθ and one step of SGD is θ' = θ − lr·Hθ = (I −
                lr·H) θ: each step multiplies θ by the same matrix.""",
                go=[("The first gradient", 5, 0), ("The first step", 6, 0)],
            ),
            section(
                "Turn round: the validation loss",
                """At the end L_val = ½ ‖θ_J − t‖² measures how far θ_J lies from the target t = (0.5, 0.25). Its
                gradient B_J = θ_J − t is the first adjoint: how much L_val would change if θ_J moved.""",
                go=[("L_val", 8, STEPS), ("B_J", 9, STEPS)],
            ),
            section(
                "Backwards: ask each step what it did",
                """θ_j reaches θ_j₊₁ in two ways. Directly: θ' = θ − …, which hands B on unchanged. And through the
                gradient: moving θ moves G = Hθ, and G moves θ' by −lr. That second way is V·H, the curvature term
                of line 14, with V = −lr·B. The sum is B_j = B_j₊₁ (I − lr·H): the same matrix again, now from the
                left.""",
                go=[("V in the last step", 11, STEPS - 1), ("Line 14 there", 14, STEPS - 1), ("B_0", 14, 0)],
            ),
            section(
                "The learning rate's gradient grows term by term",
                """lr was used in every step, so A_lr is a sum over all of them: step j adds −B_j₊₁·G_j. A negative
                sum says that a larger lr would lower L_val.""",
                go=[("The first term", 12, STEPS - 1), ("The last term", 12, 0), ("All joined", 16, 0)],
            ),
        ],
        check=_check,
        charts=_charts,
    )  # fmt: skip


def _check(trace: Any) -> Sequence[Check]:
    A, theta_0, t, J = np.array(H), np.array(START), np.array(TARGET), STEPS
    M = np.eye(2) - LR * A
    theta_J = np.linalg.matrix_power(M, J) @ theta_0
    B_0 = (theta_J - t) @ np.linalg.matrix_power(M, J)
    A_lr = -(theta_J - t) @ (J * A @ np.linalg.matrix_power(M, J - 1) @ theta_0)
    result, source = trace.result, "closed form, powers of I − lr·H"
    allowed = 50 * J * np.finfo(float).eps  # each step rounds a few times, on numbers of size 10 at most
    return [
        Check("θ_J[0]", result.theta_J["θ"][0].item(), theta_J[0], source, allowed),
        Check("θ_J[1]", result.theta_J["θ"][1].item(), theta_J[1], source, allowed),
        Check("B_0[0]", result.B_0["θ"][0].item(), B_0[0], source, allowed),
        Check("B_0[1]", result.B_0["θ"][1].item(), B_0[1], source, allowed),
        Check("A_opt lr", result.A_opt["lr"].item(), A_lr, source, allowed),
    ]


def _charts(trace: Any) -> Sequence[dict[str, Any]]:
    slow, fast = np.linalg.eigvalsh(np.array(H))
    return [
        chart(
            "The two directions shrink at their own rates",
            {f"(1 − lr·{h:.3g})^(J−j)": [(1 - LR * h) ** (STEPS - j) for j in range(STEPS + 1)] for h in (slow, fast)},
            caption="""B_j keeps the factor (1 − lr·h)^(J−j) along the direction of curvature h. The sweep forgets
            the steep direction first: early steps hardly matter there, because later ones undo them.""",
        )
    ]
