"""Lesson 5: a meta-gradient that explodes, and where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, section
from gimli_core.step_through.page.experiments import Experiments, Plane

__all__ = ["exploding"]

RATE, START, STEPS, TARGET = 1.9, (0.4, 0.4), 30, 0.5
SCALES = (1.0, 0.3)


def exploding() -> Lesson:
    """Two double wells (θ² − 1)²/4, one with a learning rate that is too large: θ' = θ − r·θ(θ² − 1).

        dθ_J/dθ_0 = Π_j (1 − r·(3θ_j² − 1))

    >>> import gimli_core as gimli
    >>> gimli.lessons.exploding().verification.assert_ok()
    """
    scale = torch.tensor(SCALES, dtype=torch.float64)

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return (scale * (theta["θ"] ** 2 - 1) ** 2).sum() / 4

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((theta["θ"] - TARGET) ** 2).sum() / 2

    trajectory = _trajectory(RATE * SCALES[0], START[0])
    factors = _factors(RATE * SCALES[0], START[0])
    worst = int(np.argmax(factors))
    mild = int(np.argmin(factors))
    B = list(accumulate(reversed(factors), lambda a, b: a * b, initial=abs(trajectory[-1] - TARGET)))[::-1]
    beyond = max(j for j in range(STEPS) if B[j] > 1e3)
    return Lesson(
        name="exploding",
        title="A meta-gradient that explodes, and where",
        summary="The inner loss stays tame while the meta-gradient grows to 10¹⁰. The sweep shows which steps did it.",
        arguments={
            "problem": Problem(train_loss, val_loss, SGD(lr=RATE)),
            "theta_0": {"θ": torch.tensor(START, dtype=torch.float64)},
            "train_batches": lambda j: None,
            "val_batch": None,
            "steps": STEPS,
            "phi_opt": {"lr": RATE},
        },
        experiments=Experiments(
            vary={"lr": [1.5 + 0.012 * k for k in range(41)]},
            roads=True,
            plane=Plane((-1.5, 1.5), (-0.2, 1.5)),
            twin={
                "loss": {"kind": "wells", "scale": SCALES},
                "val": {"kind": "quadratic", "H": ((1.0, 0.0), (0.0, 1.0)), "center": (TARGET, TARGET)},
            },
        ),
        sections=[
            section(
                "Should lr be larger or smaller?",
                """Both entries of θ start at 0.4 in a double well with its floors at ±1. The shallow one settles; the
                steep one jumps from side to side. The loss is bounded and no number is large. Move lr a little, then
                zoom in.""",
                kind="ask",
                go=[("The start", 6, 0), ("Half way", 6, STEPS // 2)],
                why=(
                    "How often does this curve turn?",
                    """At least 90,000 times within 10⁻⁶ of lr, counted at two million points. The tangent is exact,
                    and it is the slope of one of those turns: it says nothing about the next one.""",
                ),
            ),
            section(
                "Nudge θ_j by hand",
                """Nudge θ[0] early by the smallest size, and late. Late, B_j·δ foretells what happens. Early, the
                rerun has nothing to do with it: the nudge has grown beyond any straight line.""",
                kind="nudge",
                go=[("Late", 14, STEPS - 3), ("Early", 14, 3)],
            ),
            section(
                "Two roads that pull apart",
                """One step multiplies a nudge by 1 − lr·H_j: the straight road brings 1, the road through the slope
                −lr·H_j. Where the well curves so much that |1 − lr·H_j| > 1, the nudge grows.""",
                kind="roads",
            ),
            section(
                "Turn it round",
                """Backwards the same factors multiply B. Take the worst step: there the curvature term is several
                times the direct one. In a mild step they nearly cancel.""",
                kind="turn",
                go=[("The worst step", 14, worst), ("A mild step", 14, mild)],
            ),
            section(
                "Roll back: where it breaks",
                f"""‖B_j‖ passes 10³ at step {beyond} and goes on to 10¹⁰; the strip counts in powers of ten. Before
                that, going backwards, the meta-gradient is useful. Only the first entry explodes: it is that entry's
                lr that is too large.""",
                kind="back",
                go=[("‖B‖ passes 1000", 14, beyond), ("B_0", 14, 0)],
            ),
            section(
                "Close a road: truncation",
                """A sweep over the late steps only keeps the useful part. It is not the exact gradient; here that is
                its merit.""",
                kind="close",
                go=[("The largest terms", 12, 0)],
            ),
            section(
                "Say it",
                """Explain why a gradient can be exact and useless. The table compares B_0 with the product of the
                factors along the engine's own path.""",
                kind="say",
                go=[("The result", 16, 0)],
            ),
        ],
        check=_check,
        charts=lambda trace: [
            chart(
                "How much each step stretches B",
                {f"|dθ_j₊₁/dθ_j| of θ[{i}]": _factors(RATE * s, START[i]) for i, s in enumerate(SCALES)},
                log=True,
                y="factor",
                caption="""Above 1 the adjoint grows in that step, below 1 it shrinks. The first entry lies above 1
                more often than below.""",
            )
        ],
    )


def _trajectory(r: float, x: float) -> list[float]:
    return list(accumulate(range(STEPS), lambda x, _: x - r * x * (x * x - 1), initial=x))


def _factors(r: float, x: float) -> list[float]:
    return [abs(1 - r * (3 * x * x - 1)) for x in _trajectory(r, x)[:-1]]


def _check(trace: Any) -> Sequence[Check]:
    """B_0 and A_lr by the product of factors along the engine's own trajectory: chaos lets no other one stay close."""
    cells, checks, A_lr = trace.data["q"]["theta"]["cells"], [], 0.0
    eps = np.finfo(float).eps
    for i, s in enumerate(SCALES):
        x = [cells[j][0]["v"][i] for j in range(STEPS + 1)]
        B = x[-1] - TARGET
        for j in reversed(range(STEPS)):
            A_lr -= B * s * x[j] * (x[j] * x[j] - 1)
            B *= 1 - RATE * s * (3 * x[j] * x[j] - 1)
        # Each factor is rounded a few times; those near 0 lose the most.
        lost = sum(8 * eps * (1 + 6 * RATE * s) / abs(1 - RATE * s * (3 * v * v - 1)) for v in x[:-1])
        checks.append(
            Check(f"B_0[{i}]", trace.result.B_0["θ"][i].item(), B, "closed form, the product of factors", lost * abs(B))
        )
    checks.append(
        Check("A_opt lr", trace.result.A_opt["lr"].item(), A_lr, "closed form, the sum over steps", 1e-11 * abs(A_lr))
    )
    start = _trajectory(RATE * SCALES[0], START[0])
    drift = max(abs(cells[j][0]["v"][0] - start[j]) for j in range(8))
    checks.append(Check("θ_0 … θ_7, largest drift", drift, 0.0, "the map iterated by itself", 1e-12))
    return checks
