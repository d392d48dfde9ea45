"""Lesson 7: what a copied weight still shares with the one that it was copied from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gimli_core.meta_gradient import meta_gradient
from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, differences, section
from gimli_core.step_through.page.experiments import Experiments, Plane
from gimli_core.unroll import unroll

__all__ = ["copied"]

H = ((2.0, 0.6), (0.6, 1.0))
CENTER, TARGET, START, LR, STEPS = (1.2, -0.4), (0.9, 0.3), 0.6, 0.15, 6


def copied() -> Lesson:
    """Two weights made from one, w and its copy, that train side by side: ℓ = ½ (θ−c)ᵀH(θ−c), L_val = ½‖θ−t‖².

        θ_0 = (w, w):    dL/dw = B_0[w] + B_0[copy], with B_0 = (θ_J − t)·(I − lr·H)^J

    >>> import gimli_core as gimli
    >>> gimli.lessons.copied().verification.assert_ok()
    """
    matrix, center, target = (torch.tensor(x, dtype=torch.float64) for x in (H, CENTER, TARGET))

    def pair(theta: dict[str, Any]) -> Any:
        return torch.stack([theta["w"], theta["copy"]])

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        off = pair(theta) - center
        return off @ matrix @ off / 2

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((pair(theta) - target) ** 2).sum() / 2

    start = torch.tensor(START, dtype=torch.float64)
    arguments: dict[str, Any] = {
        "problem": Problem(train_loss, val_loss, SGD(lr=LR)),
        "theta_0": {"w": start, "copy": start.clone()},
        "train_batches": lambda j: None,
        "val_batch": None,
        "steps": STEPS,
        "phi_opt": {"lr": LR},
    }
    return Lesson(
        name="copied",
        title="What a copied module still shares",
        summary="A copy starts at the same place. After that only the loss, and the way it was copied, tie the two.",
        arguments=arguments,
        experiments=Experiments(
            vary={"lr": [0.015 * k for k in range(1, 42)]},
            roads=True,
            plane=Plane((0.2, 1.7), (-0.9, 0.9)),
            twin={
                "loss": {"kind": "quadratic", "H": H, "center": CENTER},
                "val": {"kind": "quadratic", "H": ((1.0, 0.0), (0.0, 1.0)), "center": TARGET},
            },
        ),
        sections=[
            section(
                "Do a weight and its copy stay together?",
                """A weight w was copied, and both train for six steps. They start on the diagonal, where they are
                equal. Guess whether they stay there; then move lr.""",
                kind="ask",
                go=[("The first gradient", 5, 0), ("After one step", 6, 0)],
            ),
            section(
                "Nudge the one, then the other",
                """A copy is a number of its own: a nudge of w alone does not move the copy, but turns its slope, where
                the loss holds both. Nudge both by the same δ at θ_0, and you have moved the original before it was
                copied.""",
                kind="nudge",
                go=[("θ_0 and its B_0", 14, 0)],
            ),
            section(
                "Two roads, and one of them crosses over",
                """Straight on, w stays w and the copy the copy. Through the slope the Hessian's off-diagonal entry,
                0.6, lets a nudge of the one reach the other. A loss without such an entry would share nothing at
                all.""",
                kind="roads",
                go=[("A step", 6, 3)],
            ),
            section(
                "Turn it round",
                """B has an entry for each. Line 14 mixes them by the same off-diagonal entry. Nothing in Algorithm 1
                knows that the two were equal once.""",
                kind="turn",
                go=[("B_J", 9, STEPS), ("Line 14 in the middle", 14, 3)],
            ),
            section(
                "Roll back to the moment of copying",
                """B_0 has two entries, the prices of w and of its copy at the start. If both came from one weight, a
                nudge of that weight pays both prices: its gradient is their sum.""",
                kind="back",
                go=[("B_0", 14, 0)],
                why=(
                    "And with clone(), detach() or deepcopy()?",
                    """`w.clone()` keeps the way back: the original's .grad is B_0[w] + B_0[copy]. `w.detach().clone()`
                    and `copy.deepcopy` cut it: the copy's price reaches nobody, and .grad is B_0[w] alone. A module
                    copied by deepcopy shares no weight and no buffer; `dict(module.named_parameters())` copies
                    nothing, and the engine never writes into what it is given.""",
                ),
            ),
            section(
                "Close a road",
                """Without curvature each entry of B goes back alone: the tie between the two is the curvature.""",
                kind="close",
                go=[("B_0 again", 14, 0)],
            ),
            section(
                "Say it",
                """Explain to a friend what clone() keeps that deepcopy() cuts. The table compares the sum of the two
                prices with a rerun that moves both, and with .grad after `gimli.unroll`.""",
                kind="say",
                go=[("The result", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, arguments),
        charts=_charts,
    )


def _check(trace: Any, arguments: dict[str, Any]) -> Sequence[Check]:
    M = np.eye(2) - LR * np.array(H)
    theta_J = np.array(CENTER) + np.linalg.matrix_power(M, STEPS) @ (np.array([START, START]) - np.array(CENTER))
    B_0 = (theta_J - np.array(TARGET)) @ np.linalg.matrix_power(M, STEPS)
    engine = {k: trace.result.B_0[k].item() for k in ("w", "copy")}
    allowed, source = 50 * STEPS * np.finfo(float).eps, "closed form, powers of I − lr·H"

    def gradient(copy: Any) -> float:
        w = torch.tensor(START, dtype=torch.float64, requires_grad=True)
        call = {k: v for k, v in arguments.items() if k not in ("problem", "theta_0")}
        unroll(arguments["problem"], {"w": w, "copy": copy(w)}, **call).backward()
        return w.grad.item() if w.grad is not None else 0.0

    def both(x: float) -> float:
        moved = torch.tensor(x, dtype=torch.float64)
        start = {"w": moved, "copy": moved.clone()}
        return meta_gradient(**{**arguments, "theta_0": start, "check": False}).val_loss.item()

    slope, error = differences(both, START, 1e-2)
    total = engine["w"] + engine["copy"]
    return [
        Check("B_0 w", engine["w"], B_0[0], source, allowed),
        Check("B_0 copy", engine["copy"], B_0[1], source, allowed),
        Check("B_0 w + B_0 copy", total, slope, "both moved: finite differences", 10 * error),
        Check(".grad with clone()", gradient(lambda w: w.clone()), total, "the sum of the two prices", allowed),
        Check(".grad with a cut", gradient(lambda w: w.detach().clone()), engine["w"], "the price of w alone", allowed),
    ]


def _charts(trace: Any) -> Sequence[dict[str, Any]]:
    cells = trace.data["q"]["theta"]["cells"]
    return [
        chart(
            "Apart after one step",
            {name: [cells[j][n]["v"][0] for j in range(STEPS + 1)] for n, name in enumerate(("w", "copy"))},
            y="θ_j",
            caption="Both start at 0.6. The loss treats them differently, so the first step already parts them.",
        )
    ]
