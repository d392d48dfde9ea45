"""Lesson 3: Adam's state adjoints, and the point G = 0, v = 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gimli_core.meta_gradient import meta_gradient
from gimli_core.optimizers import Adam
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, differences, section
from gimli_core.step_through.page.experiments import Experiments, Plane

__all__ = ["adam"]

START, GATED, LR, EPS, STEPS = 1.5, 0.7, 0.1, 0.5, 10
NEAR = [0.1 * (k - 10) for k in range(21)]


def adam() -> Lesson:
    """A weight that learns beside a gated one whose gradient is exactly 0: ℓ = (w − 1)²/2 + gate·u, gate = 0.

    Near gate = 0 each step moves u by −lr·gate/(|gate| + eps), whatever the moments do, so that u_J = u_0 −
    J·lr·gate/eps to first order, and dL/dgate = −∂L_val/∂u · J·lr/eps.

    >>> import gimli_core as gimli
    >>> gimli.lessons.adam().verification.assert_ok()
    """

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((theta["w"] - 1) ** 2).sum() / 2 + phi["gate"] * theta["u"].sum()

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((theta["w"] + theta["u"] - 1.2) ** 2).sum() / 2

    arguments: dict[str, Any] = {
        "problem": Problem(train_loss, val_loss, Adam(lr=LR, eps=EPS)),
        "theta_0": {"w": torch.tensor([START], dtype=torch.float64), "u": torch.tensor([GATED], dtype=torch.float64)},
        "train_batches": lambda j: None,
        "val_batch": None,
        "steps": STEPS,
        "phi_opt": {"lr": LR, "beta1": 0.9, "beta2": 0.999, "eps": EPS},
        "phi_loss": {"gate": torch.tensor(0.0, dtype=torch.float64)},
    }
    return Lesson(
        name="adam",
        title="Adam's state adjoints, and the point G = 0",
        summary="Two moments mean two more adjoints; and where autograd says nan, the derivative exists.",
        arguments=arguments,
        experiments=Experiments(
            vary={"lr": [0.006 * k for k in range(1, 42)], "gate": [0.04 * (k - 10) for k in range(21)]},
            roads=True,
            plane=Plane((0.4, 1.7), (0.2, 1.2)),
            twin={
                "loss": {
                    "kind": "quadratic",
                    "H": ((1.0, 0.0), (0.0, 0.0)),
                    "center": (1.0, 0.0),
                    "linear": {"gate": (0.0, 1.0)},
                },
                "val": {"kind": "quadratic", "H": ((1.0, 1.0), (1.0, 1.0)), "center": (1.2, 0.0)},
                "phi": {"gate": [0.0]},
            },
        ),
        sections=[
            section(
                "Larger or smaller?",
                """The weight w learns, ℓ = ½ (w − 1)² + gate·u; u waits behind a gate that is closed. L_val wants w +
                u = 1.2. Should lr grow? Should the gate open, and to which side? Guess, then move both.""",
                kind="ask",
                go=[("The first moments", 6, 0), ("Later", 6, STEPS - 1)],
            ),
            section(
                "Nudge θ_j by hand",
                """Push w or u. Adam divides by the size of its past gradients, so a nudge of w also changes how long
                later steps are: Adam's two moments m and v remember it.""",
                kind="nudge",
            ),
            section(
                "Two roads, and the moments",
                """To θ_j₊₁ a nudge goes straight, and through the slope G_j. The slope also enters m, a running mean
                of G, and v, a running mean of G²: both are handed on to the next step.""",
                kind="roads",
            ),
            section(
                "Turn it round: S has two parts",
                """One price for each moment: how L_val moves with m, and how with v. Both start at 0 and fill as the
                sweep goes back. Line 11 gathers what reaches G_j through m and v.""",
                kind="turn",
                go=[("S appears", 14, STEPS - 1), ("In the middle", 14, STEPS // 2)],
            ),
            section(
                "The weight u: its gradient is exactly 0",
                """u stands behind a closed gate, as behind a dead ReLU: G = m = v = 0. Adam divides by √v + eps, and
                the slope of √v at 0 is infinite: autograd computes 0·∞ = nan. But near G = 0 the step is −lr·G/(|G| +
                eps), a smooth line of slope −lr/eps.""",
                kind="back",
                go=[
                    ("G is 0 for u", 5, 3),
                    ("O is −lr/eps there, in the first step", 11, 0),
                    ("The gate's first term", 13, STEPS - 1),
                ],
                why=(
                    "What is the gate's gradient, then?",
                    """The gate acts through G alone, with ∂G_u/∂gate = 1. So line 13 adds V_u in every step, and the
                    sum is −B_u·J·lr/eps: a finite number that finite differences confirm, where autograd says nan.""",
                ),
            ),
            section(
                "Close a road",
                """Take the two moments for constants, and both S stay 0 for ever. Here that changes A_lr and B_0, and
                not by a little.""",
                kind="close",
                go=[("B_0", 14, 0)],
            ),
            section(
                "Say it",
                """Explain why a gradient of exactly 0 is no reason for nan. The table compares the gate's gradient
                with its closed form, the others with finite differences.""",
                kind="say",
                go=[("The result", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, arguments),
        charts=_charts,
    )


def _check(trace: Any, arguments: dict[str, Any]) -> Sequence[Check]:
    result = trace.result
    B_u = (result.theta_J["w"] + result.theta_J["u"] - 1.2).item()
    gate = Check(
        "A_loss gate",
        result.A_loss["gate"].item(),
        -B_u * STEPS * LR / EPS,
        "closed form −B_u·J·lr/eps",
        100 * STEPS * 2.2e-16,
    )
    checks = [gate]

    def loss_with(**changed: float) -> float:
        return meta_gradient(
            **{**arguments, "phi_opt": {**arguments["phi_opt"], **changed}, "check": False}
        ).val_loss.item()

    for name, h in (("lr", 1e-3), ("beta1", 1e-3), ("beta2", 2e-4), ("eps", 1e-3)):
        slope, error = differences(lambda x, name=name: loss_with(**{name: x}), arguments["phi_opt"][name], h)  # type: ignore[misc]
        checks.append(
            Check(f"A_opt {name}", result.A_opt[name].item(), slope, "finite differences and their error", 10 * error)
        )
    return checks


def _charts(trace: Any) -> Sequence[dict[str, Any]]:
    q = trace.data["q"]

    def path(name: str) -> list[float]:
        return [q[name]["cells"][j][0]["v"][0] for j in range(STEPS + 1)]

    return [
        chart(
            "The adjoints of w and of its two moments",
            {"B": path("B"), "S of exp_avg": path("S.exp_avg"), "S of exp_avg_sq": path("S.exp_avg_sq")},
            y="price",
            caption="""All three start at the right end of the sweep, the S at 0. A reading with θ alone keeps both S
            at 0 for ever, and loses what the moments carry.""",
        ),
        chart(
            "Adam's first step near G = 0",
            {
                "the step, −lr·G/(|G| + eps)": [-LR * g / (abs(g) + EPS) for g in NEAR],
                "its tangent at 0, of slope −lr/eps": [-LR * g / EPS for g in NEAR],
            },
            x="G",
            y="step",
            xs=NEAR,
            caption="""√v alone has a kink at 0, but the whole step has none: it crosses 0 as a line.""",
        ),
    ]
