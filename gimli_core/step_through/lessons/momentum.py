"""Lesson 2: what reading line 14 without the optimizer's state misses, on SGD with momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gimli_core.arguments.approximation import ThetaOnly
from gimli_core.meta_gradient import meta_gradient
from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, section
from gimli_core.step_through.page.experiments import Experiments, Plane
from gimli_core.step_through.walk import step_through

__all__ = ["momentum"]

CURVATURE, START, LR, MOMENTUM, STEPS = (1.0, 4.0), (1.5, -1.0), 0.08, 0.8, 12


def momentum() -> Lesson:
    """ℓ = Σ h_i θ_i²/2 under SGD with momentum μ: z = (θ, b) obeys z' = M z with M = [[1 − lr·h, −lr·μ], [h, μ]].

    The exact B_0 is (B_J, 0)·M^J; the paper's lines without the state give B_J·(1 − lr·h)^J.

    >>> import gimli_core as gimli
    >>> gimli.lessons.momentum().verification.assert_ok()
    """
    h = torch.tensor(CURVATURE, dtype=torch.float64)

    def loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return (h * theta["θ"] ** 2).sum() / 2

    arguments: dict[str, Any] = {
        "problem": Problem(loss, loss, SGD(lr=LR, momentum=MOMENTUM)),
        "theta_0": {"θ": torch.tensor(START, dtype=torch.float64)},
        "train_batches": lambda j: None,
        "val_batch": None,
        "steps": STEPS,
        "phi_opt": {"lr": LR, "momentum": MOMENTUM},
    }
    return Lesson(
        name="momentum",
        title="Momentum: what θ alone misses",
        summary="The optimizer remembers. Its memory needs an adjoint too, or the meta-gradient is silently wrong.",
        arguments=arguments,
        experiments=Experiments(
            vary={"lr": [0.005 * k for k in range(1, 42)], "momentum": [0.024 * k for k in range(41)]},
            roads=True,
            plane=Plane((-1.6, 1.8), (-1.25, 1.0)),
            twin={kind: {"kind": "quadratic", "H": np.diag(CURVATURE).tolist()} for kind in ("loss", "val")},
        ),
        sections=[
            section(
                "More momentum, or less?",
                """SGD with momentum keeps a buffer, b' = μ·b + G, and moves by θ' = θ − lr·b'. Twelve steps roll
                through the valley and beyond its floor. Would a larger lr, or a larger μ, end lower? Guess, then move
                both.""",
                kind="ask",
                go=[("The first step: b is empty", 6, 0), ("Later: b is full", 6, 5)],
            ),
            section(
                "Nudge θ_j by hand",
                """The nudge is felt at once, and again in every later step: the buffer remembers the slope that the
                nudge has turned. B_j·δ must know all of that.""",
                kind="nudge",
            ),
            section(
                "Two roads, and a third",
                """To θ_j₊₁ there are two roads, as without momentum. But the slope also goes into the buffer, b' = μ·b
                + G, and the buffer moves θ later. That third road leaves the picture of one step through its state.""",
                kind="roads",
            ),
            section(
                "Turn it round: S appears",
                """S_J = 0, since nobody uses the last buffer. One step back it is no longer 0: b_j was used to make
                θ_J. From then on line 11 has two parts, V_j = −lr·B_j₊₁ + S_j₊₁.""",
                kind="turn",
                go=[("S_J = 0", 9, STEPS), ("S appears", 14, STEPS - 1), ("V has two parts", 11, STEPS - 2)],
            ),
            section(
                "Roll back to B_0",
                """B and S go back together. B swings as the momentum does, and changes its sign on the way. Line 12
                drops a term for lr and one for μ.""",
                kind="back",
                go=[("The first term", 12, STEPS - 1), ("The last", 12, 0)],
            ),
            section(
                "Close a road: θ alone",
                """Read with θ alone, lines 11 to 14 take the buffer for a constant. Nothing fails; the number is just
                wrong. Close that road and watch the tangent and B_0.""",
                kind="close",
                go=[("B_0", 14, 0)],
                why=(
                    "How wrong can it be?",
                    """At j = 0 the θ-only B has the wrong sign in its first entry and a fifteenth of the size in its
                    second: descending along it would push θ_0 the wrong way.""",
                ),
            ),
            section(
                "Say it",
                """Explain to a friend why the optimizer's memory needs a price of its own. The table at the end
                compares B_0, exact and θ-only, with powers of a matrix.""",
                kind="say",
                go=[("The result", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, meta_gradient(**arguments, approximation=ThetaOnly())),
        charts=lambda trace: _charts(trace, arguments),
    )


def _check(trace: Any, ablation: Any) -> Sequence[Check]:
    checks, A_lr, A_momentum = [], 0.0, 0.0
    allowed = 200 * STEPS * np.finfo(float).eps
    for i, (h, start) in enumerate(zip(CURVATURE, START, strict=True)):
        M = np.array([[1 - LR * h, -LR * MOMENTUM], [h, MOMENTUM]])
        z_0, power = np.array([start, 0.0]), np.linalg.matrix_power
        B_J = np.array([h * (power(M, STEPS) @ z_0)[0], 0.0])
        exact = (B_J @ power(M, STEPS))[0]
        for j in range(STEPS):
            before, after = B_J @ power(M, STEPS - 1 - j), power(M, j) @ z_0
            A_lr += before @ np.array([[-h, -MOMENTUM], [0, 0]]) @ after
            A_momentum += before @ np.array([[0, -LR], [0, 1]]) @ after
        checks.append(Check(f"B_0[{i}]", trace.result.B_0["θ"][i].item(), exact, "closed form, powers of M", allowed))
        missed = B_J[0] * (1 - LR * h) ** STEPS
        checks.append(
            Check(f"θ-only B_0[{i}]", ablation.B_0["θ"][i].item(), missed, "closed form of the ablation", allowed)
        )
    checks.append(Check("A_opt lr", trace.result.A_opt["lr"].item(), A_lr, "closed form, sum over steps", 10 * allowed))
    checks.append(
        Check(
            "A_opt momentum",
            trace.result.A_opt["momentum"].item(),
            A_momentum,
            "closed form, sum over steps",
            10 * allowed,
        )
    )
    return checks


def _charts(trace: Any, arguments: dict[str, Any]) -> Sequence[dict[str, Any]]:
    curves = {}
    for label, approximation in (("exact", None), ("θ-only", ThetaOnly())):
        walk = step_through(**arguments, approximation=approximation)
        B = {m.j: m.values["B"]["θ"] for m in walk if m.line in (9, 14)}
        for i in range(2):
            curves[f"{label} B_j[{i}]"] = [B[j][i].item() for j in range(STEPS + 1)]
    return [
        chart(
            "B_j, exact and θ-only",
            curves,
            y="B_j",
            caption="""Read from right to left, as the sweep runs. Both start from the same B_J and agree for one step.
            The exact adjoint swings as the momentum does; the θ-only one only shrinks.""",
        )
    ]
