"""Lesson 9: checkpoints: the sweep needs every θ_j, backwards; what is not kept is walked again, to the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.memory.schedules.actions import Advance
from gimli_core.meta_gradient import meta_gradient
from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, section
from gimli_core.step_through.page.experiments import Experiments, Plane

__all__ = ["checkpoints"]

SCALES, START, TARGET, LR, STEPS, SNAPSHOTS = (1.0, 0.5), (0.3, 1.6), (0.8, 0.9), 0.25, 8, 3


def checkpoints() -> Lesson:
    """ℓ = Σ_i c_i (θ_i² − 1)²/4, L_val = ½‖θ − t‖², with three snapshots for eight steps (Griewank and Walther 2000).

        B_j = B_j₊₁ (I − lr·∇²ℓ(θ_j)),   ∇²ℓ(θ_j) = diag(c_i (3θ_j,i² − 1))
        B_0 = (θ_J − t) Π_j (1 − lr·c (3θ_j² − 1)),  entry by entry

    >>> import gimli_core as gimli
    >>> gimli.lessons.checkpoints().verification.assert_ok()
    """
    scale, target = torch.tensor(SCALES, dtype=torch.float64), torch.tensor(TARGET, dtype=torch.float64)

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return (scale * (theta["θ"] ** 2 - 1) ** 2).sum() / 4

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], batch: None) -> Any:
        return ((theta["θ"] - target) ** 2).sum() / 2

    arguments: dict[str, Any] = {
        "problem": Problem(train_loss, val_loss, SGD(lr=LR)),
        "theta_0": {"θ": torch.tensor(START, dtype=torch.float64)},
        "train_batches": lambda j: None,
        "val_batch": None,
        "steps": STEPS,
        "phi_opt": {"lr": LR},
        "memory": Checkpoint(SNAPSHOTS),
    }
    return Lesson(
        name="checkpoints",
        title="Checkpoints: forget the path, walk it again",
        summary="Three snapshots instead of eight graphs. Steps are run again on the way back, and no digit changes.",
        arguments=arguments,
        experiments=Experiments(
            vary={"lr": [0.02 * k for k in range(1, 42)]},
            roads=True,
            plane=Plane((-0.2, 1.5), (0.3, 1.8)),
            twin={
                "loss": {"kind": "wells", "scale": SCALES},
                "val": {"kind": "quadratic", "H": ((1.0, 0.0), (0.0, 1.0)), "center": TARGET},
            },
        ),
        sections=[
            section(
                "How much of the path must be kept?",
                """Eight steps into two wells. The sweep comes back the same way, last step first, and at each step it
                asks for the curvature there. Guess how many of the nine θ_j must lie in memory at once.""",
                kind="ask",
                go=[("The first step", 5, 0), ("The last step", 6, STEPS - 1)],
            ),
            section(
                "Nudge θ_j by hand",
                """What a nudge costs at step j depends on every valley after it. So B_j needs θ_j, and B_j₋₁ needs
                θ_j₋₁: the sweep meets the path backwards, while the run made it forwards.""",
                kind="nudge",
                go=[("θ_4 and its B_4", 14, 4)],
            ),
            section(
                "Why the curvature forgets nothing",
                """In a quadratic valley H is one matrix for all steps, and nothing would have to be kept. Here
                ∇²ℓ(θ_j) = c·(3θ_j² − 1) is another at each step. The bent road of line 14 cannot be drawn without
                θ_j.""",
                kind="roads",
            ),
            section(
                "Turn it round, and run again",
                """A small square in the strip marks a state that is kept. Where none is, the schedule goes back to the
                last square and runs forwards from there: the moments marked "replay". Line 5 and line 6 appear again
                between the lines of the sweep.""",
                kind="turn",
                go=[("B_J", 9, STEPS), ("V of the last step", 11, STEPS - 1), ("Line 14 at step 5", 14, 5)],
            ),
            section(
                "Roll back to B_0",
                """Each term of A_lr drops as ever. Watch the squares: as the sweep passes one it is free, and is
                used for a state further left. With s snapshots and r runs of a step, (s + r)! / (s! r!) steps can be
                swept: three snapshots and three runs of each reach twenty.""",
                kind="back",
                go=[("The first term", 12, STEPS - 1), ("The last", 12, 0), ("The result", 16, 0)],
                why=(
                    "Why is no digit different?",
                    """A step that runs again starts from the same θ_j, on the same batch, with the same random
                    numbers, and takes the same kernels. So θ_j₊₁ has the same bits, and so has everything after it. The
                    table compares with a run that kept every graph, and allows a difference of 0.""",
                ),
            ),
            section(
                "Close a road",
                """Leaving out the early steps saves memory too: that is truncation. But it changes the answer, where a
                checkpoint only changes the time.""",
                kind="close",
                go=[("B_0", 14, 0)],
            ),
            section(
                "Say it",
                """Explain what is traded for what. Below: how many steps are run, for each number of snapshots.""",
                kind="say",
                go=[("The result", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, arguments),
        charts=_charts,
    )


def _check(trace: Any, arguments: dict[str, Any]) -> Sequence[Check]:
    theta, c, t = np.array(START), np.array(SCALES), np.array(TARGET)
    factors = np.ones(2)
    for _ in range(STEPS):
        factors = factors * (1 - LR * c * (3 * theta**2 - 1))
        theta = theta - LR * c * theta * (theta**2 - 1)
    checks = []
    for i in range(2):
        engine = trace.result.B_0["θ"][i].item()
        checks.append(Check(f"B_0[{i}]", engine, ((theta - t) * factors)[i], "closed form, a product", 1e-14))
    engine = trace.result.A_opt["lr"].item()
    for schedule in (RetainGraphs(), StoreStates(), Checkpoint(1)):
        other = meta_gradient(**{**arguments, "memory": schedule, "check": False}).A_opt["lr"].item()
        checks.append(Check("A_opt lr", engine, other, f"the engine under {schedule}, bit for bit", 1e-300))
    return checks


def _runs(snapshots: int) -> int:
    """Steps that the schedule runs forwards: its own actions, counted."""
    return sum(isinstance(action, Advance) for action in Checkpoint(snapshots).actions(STEPS))


def _charts(trace: Any) -> Sequence[dict[str, Any]]:
    snapshots = range(1, STEPS + 1)
    return [
        chart(
            "Steps that are run, for each number of snapshots",
            {"steps run": [_runs(s) for s in snapshots]},
            x="snapshots",
            y="steps",
            bars=[str(s) for s in snapshots],
            caption=f"Of {STEPS} steps. With one snapshot all is run again from θ_0, for every step of the sweep.",
        )
    ]
