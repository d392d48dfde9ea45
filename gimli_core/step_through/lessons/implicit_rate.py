"""Lesson 8: why the implicit derivative of a learning rate is 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gimli_core.meta_gradient import meta_gradient
from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, section
from gimli_core.step_through.page.experiments import Experiments, Plane

__all__ = ["implicit_rate"]

H, CENTER, TARGET = ((3.0, 1.0), (1.0, 2.0)), (1.2, 0.4), (0.3, 0.5)
START, LR, PENALTY, STEPS = (-0.6, 0.9), 0.3, 0.5, 24
SHORT = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24)


def implicit_rate() -> Lesson:
    """ℓ = ½(θ−c)ᵀH(θ−c) + ½λ‖θ‖² trained to its floor θ* = (H + λI)⁻¹Hc, L_val = ½‖θ − t‖².

        θ* does not know lr:  dL/dlr → 0     it knows λ:  dL/dλ → −(θ* − t)·(H + λI)⁻¹·θ*

    >>> import gimli_core as gimli
    >>> gimli.lessons.implicit_rate().verification.assert_ok()
    """
    matrix, center, target = (torch.tensor(x, dtype=torch.float64) for x in (H, CENTER, TARGET))

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        off = theta["θ"] - center
        return off @ matrix @ off / 2 + phi["λ"] * (theta["θ"] ** 2).sum() / 2

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((theta["θ"] - target) ** 2).sum() / 2

    arguments: dict[str, Any] = {
        "problem": Problem(train_loss, val_loss, SGD(lr=LR)),
        "theta_0": {"θ": torch.tensor(START, dtype=torch.float64)},
        "train_batches": lambda j: None,
        "val_batch": None,
        "steps": STEPS,
        "phi_opt": {"lr": LR},
        "phi_loss": {"λ": torch.tensor(PENALTY, dtype=torch.float64)},
    }
    return Lesson(
        name="implicit_rate",
        title="Why the implicit derivative of a learning rate is 0",
        summary="The way to the floor of the valley depends on lr; the floor does not. A penalty moves the floor.",
        arguments=arguments,
        experiments=Experiments(
            vary={"lr": [0.0105 * k for k in range(1, 42)], "λ": [0.1 * k for k in range(21)]},
            roads=True,
            plane=Plane((-0.9, 1.5), (-0.3, 1.3)),
            twin={
                "loss": {"kind": "quadratic", "H": H, "center": CENTER, "penalty": "λ"},
                "val": {"kind": "quadratic", "H": ((1.0, 0.0), (0.0, 1.0)), "center": TARGET},
                "phi": {"λ": [PENALTY]},
            },
        ),
        sections=[
            section(
                "Move lr, then move λ",
                """24 steps of SGD reach the floor of a valley with a penalty ½λ‖θ‖². Guess which of the two numbers
                L_val depends on. Then move both: with lr the way changes and the end stays, with λ the end moves.""",
                kind="ask",
                go=[("The first step", 6, 0), ("The last step", 6, STEPS - 1)],
            ),
            section(
                "Nudge θ_j by hand",
                """A nudge of an early θ_j is forgotten: the rest of the run rolls down to the same floor. So B_j is
                nearly 0 there. A late nudge is still felt.""",
                kind="nudge",
                go=[("Late", 14, STEPS - 2), ("Early", 14, 4)],
            ),
            section(
                "Two roads that cancel",
                """The straight road brings δ, the road through the slope takes most of it back, −lr·∇²ℓ·δ. In each
                step a part of the nudge is lost; what remains is (I − lr·∇²ℓ)·δ.""",
                kind="roads",
                go=[("A step", 6, STEPS - 2)],
            ),
            section(
                "Turn it round",
                """Backwards B shrinks by the same factors. Its sum over all steps, which line 13 uses, is finite: a
                geometric series, and its limit is the inverse of a matrix.""",
                kind="turn",
                go=[("B_J", 9, STEPS), ("Line 14 near the end", 14, STEPS - 2)],
            ),
            section(
                "Roll back: where the terms of λ come from",
                """Step j's term for lr is −B_j₊₁·G_j. Late in the run G_j is nearly 0, early B_j₊₁ is: every term is
                small. Step j's term for λ is V_j·θ_j, and θ_j stays large: the late steps count.""",
                kind="back",
                go=[("λ's first term", 13, STEPS - 1), ("lr's last term", 12, 0), ("The result", 16, 0)],
                why=(
                    "So is 0 the right answer for lr?",
                    """For a run that reached its floor, yes: θ* solves ∇ℓ(θ*) = 0, which does not hold lr, and an
                    implicit gradient differentiates that equation alone. For a run that is cut short it is the wrong
                    answer: there lr decides how far it came. To learn a learning rate, unroll.""",
                ),
            ),
            section(
                "Close a road: the early steps",
                """Leave the early half out and λ's gradient hardly changes: the late steps carry it. That is why
                implicit gradients need not store the way.""",
                kind="close",
                go=[("B_0", 14, 0)],
            ),
            section(
                "Say it",
                """Explain when an implicit gradient may be used, and for which numbers. The table compares λ's
                gradient with the implicit one, and both with powers of a matrix.""",
                kind="say",
                go=[("All joined", 16, 0)],
            ),
        ],
        check=_check,
        charts=lambda trace: _charts(arguments),
    )


def _implicit() -> float:
    """dL/dλ at the floor, by the implicit function theorem."""
    full = np.array(H) + PENALTY * np.eye(2)
    floor = np.linalg.solve(full, np.array(H) @ np.array(CENTER))
    return float(-(floor - np.array(TARGET)) @ np.linalg.solve(full, floor))


def _check(trace: Any) -> Sequence[Check]:
    full, t = np.array(H) + PENALTY * np.eye(2), np.array(TARGET)
    M, power = np.eye(2) - LR * full, np.linalg.matrix_power
    floor = np.linalg.solve(full, np.array(H) @ np.array(CENTER))
    path = [floor + power(M, j) @ (np.array(START) - floor) for j in range(STEPS + 1)]
    A_lr = A_penalty = 0.0
    for j in range(STEPS):
        B = (path[STEPS] - t) @ power(M, STEPS - 1 - j)
        A_lr -= B @ full @ (path[j] - floor)
        A_penalty -= LR * B @ path[j]
    engine, allowed = trace.result, 200 * STEPS * np.finfo(float).eps
    # What is left of the start after J steps: the slowest direction shrinks by the largest factor, J times. For lr it
    # stands beside ‖θ_J − t‖·‖H + λI‖·‖θ_0 − θ*‖, which is below 5 here.
    left = STEPS * max(abs(np.linalg.eigvalsh(M))) ** (STEPS - 1)
    B_0 = engine.B_0["θ"]
    return [
        Check("A_opt lr", engine.A_opt["lr"].item(), A_lr, "closed form, sum over steps", allowed),
        Check("A_loss λ", engine.A_loss["λ"].item(), A_penalty, "closed form, sum over steps", allowed),
        Check(
            "A_opt lr, implicit",
            engine.A_opt["lr"].item(),
            0.0,
            "the floor does not know lr; the rest is J·M^(J−1)",
            5 * left,
        ),
        Check("A_loss λ, implicit", engine.A_loss["λ"].item(), _implicit(), "the implicit function theorem", left),
        Check("‖B_0‖", float(B_0.norm()), 0.0, "the floor does not know the start", left),
    ]


def _charts(arguments: dict[str, Any]) -> Sequence[dict[str, Any]]:
    runs = [meta_gradient(**{**arguments, "steps": J, "check": False}) for J in SHORT]
    return [
        chart(
            "Longer runs: A of lr goes to 0, A of λ to the implicit gradient",
            {
                "A of lr": [r.A_opt["lr"].item() for r in runs],
                "A of λ": [r.A_loss["λ"].item() for r in runs],
                "implicit, λ": [_implicit()] * len(SHORT),
            },
            x="steps J",
            y="A",
            xs=SHORT,
            caption="Each point is a run of the engine with so many steps. Cut short, a run's lr matters most.",
        )
    ]
