"""Lesson 3: Adam's state adjoints, and the point G = 0, v = 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gimli_core.meta_gradient import meta_gradient
from gimli_core.optimizers import Adam
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, differences, section

__all__ = ["adam"]

START, GATED, LR, EPS, STEPS = 1.5, 0.7, 0.1, 0.5, 10


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
        "train_batches": lambda j: None, "val_batch": None, "steps": STEPS,
        "phi_opt": {"lr": LR, "beta1": 0.9, "beta2": 0.999, "eps": EPS},
        "phi_loss": {"gate": torch.tensor(0.0, dtype=torch.float64)},
    }  # fmt: skip
    return Lesson(
        name="adam",
        title="Adam's state adjoints, and the point G = 0",
        summary="Two moments mean two more adjoints; and where autograd says nan, the derivative exists.",
        arguments=arguments,
        sections=[
            section(
                "Forwards: two moments",
                """Adam keeps m, a running mean of the gradient, and v, a running mean of its square. Both are part
                of the state that step j hands to step j + 1, so both get an adjoint in the sweep.""",
                go=[("The first moments", 6, 0), ("Later", 6, STEPS - 1)],
            ),
            section(
                "Backwards: S has two slots",
                """exp_avg's adjoint says how L_val would change with m, exp_avg_sq's how it would change with v.
                Both start at 0 and fill as the sweep goes back.""",
                go=[("S appears", 14, STEPS - 1), ("In the middle", 14, STEPS // 2)],
            ),
            section(
                "The weight u: its gradient is exactly 0",
                """u is multiplied by a gate that is closed, as behind a dead ReLU. G = m = v = 0 there, and Adam's
                formula divides by √v + eps. The slope of √v is infinite at 0, so autograd computes 0·∞ = nan. But
                near G = 0 the step is −lr·G/(|G| + eps): a smooth line of slope −lr/eps. The engine uses that
                slope.""",
                go=[("G is 0 for u", 5, 3), ("O is −lr/eps there, in the first step", 11, 0)],
            ),
            section(
                "Opening the gate: line 13",
                """The gate acts through the gradient alone, ∂G_u/∂gate = 1, so A_loss grows by V_u in each step.
                Its sum is −B_u·J·lr/eps, a closed form that the table below compares with.""",
                go=[("The first term", 13, STEPS - 1), ("The last", 13, 0)],
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
            caption="""All three start at the right end of the sweep, the S at 0. A reading with θ alone keeps both
            S at 0 for ever, and loses what the moments carry.""",
        )
    ]
