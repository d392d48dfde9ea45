"""Lesson 6: example weights at ε = 0: nothing moves, and yet they have a gradient; and when they come out as 0."""

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

__all__ = ["example_weights"]

A = ((1.0, 0.2), (0.3, 1.0), (0.9, -0.4), (0.8, 0.5), (0.2, 0.9))  # what each example looks at
NOISE = (0.0, 0.0, 0.0, -2.0, -1.6)  # the labels of the last two are wrong
TRUTH, START, LR, STEPS = (1.0, 0.6), (0.1, 0.1), 0.2, 3
B = tuple(a[0] * TRUTH[0] + a[1] * TRUTH[1] + n for a, n in zip(A, NOISE, strict=True))


def example_weights() -> Lesson:
    """ℓ = Σ_i ε_i ½(a_i·θ − b_i)² at ε = 0, L_val = ½‖θ − t‖² (Ren et al. 2018, Learning to Reweight Examples).

        G = 0, so θ_J = θ_0 and H = 0;    A_ε,i = −J·lr·(θ_0 − t)·g_i,   g_i = a_i (a_i·θ_0 − b_i)
        weights: w_i = max(0, −A_ε,i), over their sum

    >>> import gimli_core as gimli
    >>> gimli.lessons.example_weights().verification.assert_ok()
    """
    rows, labels, truth = (torch.tensor(x, dtype=torch.float64) for x in (A, B, TRUTH))

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return (phi["ε"] * (rows @ theta["θ"] - labels) ** 2).sum() / 2

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((theta["θ"] - truth) ** 2).sum() / 2

    arguments: dict[str, Any] = {
        "problem": Problem(train_loss, val_loss, SGD(lr=LR)),
        "theta_0": {"θ": torch.tensor(START, dtype=torch.float64)},
        "train_batches": lambda j: None,
        "val_batch": None,
        "steps": STEPS,
        "phi_opt": {"lr": LR},
        "phi_loss": {"ε": torch.zeros(len(A), dtype=torch.float64)},
    }
    return Lesson(
        name="example_weights",
        title="Example weights at ε = 0: why are they 0?",
        summary="Every weight is 0 and θ does not move. The gradient of the weights is not 0, and tells noise apart.",
        arguments=arguments,
        experiments=Experiments(
            vary={"ε[0]": [0.05 * (k - 20) for k in range(41)], "ε[3]": [0.05 * (k - 20) for k in range(41)]},
            plane=Plane((-0.6, 1.6), (-0.6, 1.2)),
            roads=True,
            twin={
                "loss": {"kind": "examples", "a": A, "b": B, "weights": "ε"},
                "val": {"kind": "quadratic", "H": ((1.0, 0.0), (0.0, 1.0)), "center": TRUTH},
                "phi": {"ε": [0.0] * len(A)},
            },
        ),
        sections=[
            section(
                "Which example should weigh more?",
                """Five examples, each with a weight ε_i in the loss ℓ = Σ ε_i·ℓ_i, and every ε_i = 0. Example 0 is
                clean, the label of example 3 is wrong. Guess which way each should go; then move them and watch the
                path.""",
                kind="ask",
                go=[("The gradient is 0", 5, 0), ("Nothing moves", 6, STEPS - 1)],
            ),
            section(
                "Nudge θ_j by hand",
                """The run stands still, since G = 0 in every step. A nudge is handed on unchanged: B_j is the same at
                every step.""",
                kind="nudge",
            ),
            section(
                "One road is closed by itself",
                """The Hessian is Σ ε_i a_i a_iᵀ = 0, so nothing goes through the slope. Only the straight road is
                open, and a third arrow: from ε into G.""",
                kind="roads",
            ),
            section(
                "Turn it round: V is not 0",
                """V_j = −lr·B_j₊₁ does not ask whether G_j was 0. Line 11 gives a price to the gradient: L_val would
                move if there were one.""",
                kind="turn",
                go=[("B_J", 9, STEPS), ("V in the last step", 11, STEPS - 1)],
            ),
            section(
                "Line 13 opens the weights",
                """∂G/∂ε_i is g_i, the gradient of example i alone: not 0 although ε_i is. So line 13 adds V_j·g_i. The
                three steps add the same, since nothing has moved between them.""",
                kind="back",
                go=[("The first term", 13, STEPS - 1), ("The last", 13, 0), ("The result", 16, 0)],
                why=(
                    "Why, then, do people see weights that are all 0?",
                    """The weights are max(0, −A_ε), over their sum. They are 0 for examples whose A_ε is positive:
                    their gradient points away from the validation set's. If that is so for all, all are 0 and nothing
                    is updated. They are also 0, by mistake, if the step is taken under no_grad or by
                    `optimizer.step()`, which cut ε off: then A_ε is 0 and not small.""",
                ),
            ),
            section(
                "Close a road",
                """Without curvature nothing changes here, because there is none at ε = 0: first order is exact. With
                two or more outer steps ε is no longer 0, and it is not.""",
                kind="close",
                go=[("B_0", 14, 0)],
            ),
            section(
                "Say it",
                """Explain how a weight of 0 can have a gradient. The table compares A_ε with its closed form and with
                finite differences; the bars below show the weights that follow.""",
                kind="say",
                go=[("All joined", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, arguments),
        charts=_charts,
    )


def _check(trace: Any, arguments: dict[str, Any]) -> Sequence[Check]:
    theta, t = np.array(START), np.array(TRUTH)
    checks = []
    engine = trace.result.A_loss["ε"]
    for i, (a, b) in enumerate(zip(np.array(A), B, strict=True)):
        expected = -STEPS * LR * (theta - t) @ (a * (a @ theta - b))
        checks.append(Check(f"A_loss ε[{i}]", engine[i].item(), expected, "closed form −J·lr·(θ_0 − t)·g_i", 1e-14))
    for i in (0, 3):

        def along(x: float, i: int = i) -> float:
            weights = torch.zeros(len(A), dtype=torch.float64)
            weights[i] = x
            return meta_gradient(**{**arguments, "phi_loss": {"ε": weights}, "check": False}).val_loss.item()

        slope, error = differences(along, 0.0, 1e-2)
        checks.append(
            Check(f"A_loss ε[{i}] again", engine[i].item(), slope, "finite differences and their error", 10 * error)
        )
    checks.append(Check("A_opt lr", trace.result.A_opt["lr"].item(), 0.0, "G = 0: no step used lr", 1e-300))
    return checks


def _charts(trace: Any) -> Sequence[dict[str, Any]]:
    wanted = [max(0.0, -x) for x in trace.result.A_loss["ε"].tolist()]
    return [
        chart(
            "The weights that follow: max(0, −A_ε) over their sum",
            {"weight": [x / sum(wanted) for x in wanted]},
            x="example",
            y="weight",
            bars=[f"{i}{' noisy' if n else ''}" for i, n in enumerate(NOISE)],
            caption="The two examples with wrong labels get no weight at all.",
        )
    ]
