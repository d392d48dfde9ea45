"""Lesson 1: SGD on a two-dimensional quadratic, beside its closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, section
from gimli_core.step_through.page.experiments import Experiments, Plane

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
            "train_batches": lambda j: None,
            "val_batch": None,
            "steps": STEPS,
            "phi_opt": {"lr": LR},
        },
        experiments=Experiments(
            vary={"lr": [0.01 * k for k in range(1, 42)]},
            roads=True,
            plane=Plane((-0.9, 2.4), (-1.3, 0.9)),
            twin={
                "loss": {"kind": "quadratic", "H": H},
                "val": {"kind": "quadratic", "H": ((1.0, 0.0), (0.0, 1.0)), "center": TARGET},
            },
        ),
        sections=[
            section(
                "Should lr be larger or smaller?",
                """Eight steps of SGD roll down the valley of ℓ = ½ θᵀHθ and end beside the target t = (0.5, 0.25),
                where L_val = ½ ‖θ_J − t‖² is 0. Guess first. Then move lr: the path follows, and the slope of L_val
                over lr is what Algorithm 1 computes.""",
                kind="ask",
                go=[("The first gradient", 5, 0), ("The last step", 6, STEPS - 1)],
            ),
            section(
                "Nudge θ_j by hand",
                """Push θ_j a little, and the rest of the run follows: the dashed path. L_val moves, and B_j·δ
                foretells by how much. B_j is the price of a nudge at step j; you can measure it before anyone computes
                it.""",
                kind="nudge",
                go=[("θ_4 and its B_4", 14, 4)],
            ),
            section(
                "Two roads lead to θ_j₊₁",
                """The nudge arrives at θ_j₊₁ twice. Straight on: θ' = θ − … hands it on as it is. And through the
                slope: the nudge turns G = Hθ by H·δ, and the step follows by −lr. Both arrows are on the map; together
                they end on the dashed path.""",
                kind="roads",
                go=[("One step of SGD", 6, 4)],
            ),
            section(
                "Turn it round",
                """The same two arrows, read backwards. B_j₊₁ comes in at the right, since it is the price of θ_j₊₁.
                Line 11 sends it up to G_j: V_j = −lr·B_j₊₁. Line 14 adds what arrives at θ_j by both roads.""",
                kind="turn",
                go=[("B_J, where it starts", 9, STEPS), ("V_4", 11, 4), ("Line 14 at step 4", 14, 4)],
            ),
            section(
                "Roll back to B_0",
                """Each step back multiplies B by the same matrix, I − lr·H. On the way line 12 drops one term onto
                A_lr: −B_j₊₁·G_j, the price of θ_j₊₁ times how lr moved it. A negative sum says that a larger lr would
                lower L_val.""",
                kind="back",
                go=[("The first term", 12, STEPS - 1), ("The last term", 12, 0), ("All joined", 16, 0)],
                why=(
                    "All eight terms are the same number. Why?",
                    """Step j's term is −(θ_J − t)·M^(J−1−j)·H·M^j·θ_0 with M = I − lr·H. M is made of H alone, so the
                    two commute, and the powers of M before and after H join to M^(J−1) for every j. On a quadratic,
                    under SGD, no step matters more than another.""",
                ),
            ),
            section(
                "Close a road",
                """Leave out the road through the slope, and B_j stays B_J for ever: that is the first-order gradient.
                Leave out the early steps, and their terms are missing from the sum. The tangent no longer touches the
                curve.""",
                kind="close",
                go=[("B_0", 14, 0)],
            ),
            section(
                "Say it",
                """Explain line 14 to a friend, in one sentence. Then open the answer. The table at the end of the page
                compares every number with a closed form, which a pencil can follow.""",
                kind="say",
                go=[("The result", 16, 0)],
            ),
        ],
        check=_check,
        charts=_charts,
    )


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
            y="factor",
            caption="""B_j keeps the factor (1 − lr·h)^(J−j) along the direction of curvature h. The sweep forgets the
            steep direction first: early steps hardly matter there, because later ones undo them.""",
        )
    ]
