"""Lesson 10: tasks: many inner loops from one start; what they share gets the sum over them."""

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
from gimli_core.transforms.tasks import Tasks

__all__ = ["tasks"]

STEEPNESS, CENTERS, TARGETS = (3.0, 1.0), (1.2, -0.5), (0.9, -0.2)  # a number for each task
START, LR, STEPS = 0.4, 0.1, 6


def tasks() -> Lesson:
    """Two tasks with one weight each, from one θ_0: ℓᵗ = ½ h_t (θ − c_t)², L_val = Σ_t ½ (θᵗ_J − a_t)².

        Bᵗ_0 = (θᵗ_J − a_t)·(1 − lr·h_t)^J      dL_val/dθ_0 = Σ_t Bᵗ_0      A_lr = Σ_t Aᵗ_lr

    >>> import gimli_core as gimli
    >>> gimli.lessons.tasks().verification.assert_ok()
    """
    steepness, centers, targets = (torch.tensor(x, dtype=torch.float64) for x in (STEEPNESS, CENTERS, TARGETS))

    def train_loss(theta: dict[str, Any], phi: dict[str, Any], batch: Any) -> Any:
        h, c = batch
        return h * (theta["θ"] - c) ** 2 / 2

    def val_loss(theta: dict[str, Any], phi: dict[str, Any], target: Any) -> Any:
        return (theta["θ"] - target) ** 2 / 2

    arguments: dict[str, Any] = {
        "problem": Problem(train_loss, val_loss, SGD(lr=LR)),
        "theta_0": {"θ": torch.tensor(START, dtype=torch.float64)},
        "train_batches": lambda j: (steepness, centers),
        "val_batch": targets,
        "steps": STEPS,
        "phi_opt": {"lr": LR},
        "tasks": Tasks(2, reduce="sum"),
    }
    return Lesson(
        name="tasks",
        title="Tasks: one start, two inner loops",
        summary="Each task has a θ_j and a B_j of its own. What they share, θ_0 and lr, gets the sum of their prices.",
        arguments=arguments,
        experiments=Experiments(
            vary={"lr": [0.015 * k for k in range(1, 42)]},
            roads=True,
            plane=Plane((0.0, 1.4), (-0.6, 0.7)),
            twin={
                "loss": {"kind": "quadratic", "H": ((STEEPNESS[0], 0.0), (0.0, STEEPNESS[1])), "center": CENTERS},
                "val": {"kind": "quadratic", "H": ((1.0, 0.0), (0.0, 1.0)), "center": TARGETS},
            },
        ),
        sections=[
            section(
                "One lr for two tasks",
                """Two tasks start at the same θ_0 = 0.4, and each takes six steps on a loss of its own. The map has
                task 1 to the right, θ[0], and task 2 upwards, θ[1]; L_val is the sum over both. Should the lr that
                they share be larger or smaller?""",
                kind="ask",
                go=[("Two gradients at once", 5, 0), ("The last step", 6, STEPS - 1)],
            ),
            section(
                "Nudge one task, then both",
                """After the first step each task has a θ_j of its own: a nudge of one moves its own share of L_val
                alone. At θ_0 they share the weight: nudge both entries by the same δ, and you have moved the start.""",
                kind="nudge",
                go=[("θ_0 and its two prices", 14, 0)],
            ),
            section(
                "No road leads to the other task",
                """The Hessian of all tasks is diagonal: a task's slope knows nothing of the other's θ. So all tasks
                can take their steps at the same time, as one batch, and none waits for another.""",
                kind="roads",
                go=[("One step of both", 6, 2)],
            ),
            section(
                "Turn it round",
                """B_j has one entry for each task, and line 14 is the same line for both: task 1 multiplies its entry
                by 1 − lr·3 at each step, task 2 by 1 − lr·1.""",
                kind="turn",
                go=[("B_J", 9, STEPS), ("Line 14 in the middle", 14, 3)],
            ),
            section(
                "Where the tasks meet",
                """What the tasks share gets the sum over them. Line 12 adds both tasks' terms to A_lr at each step. At
                the end the price of the shared start is the sum of the two entries of B_0: a meta-batch is nothing but
                this sum.""",
                kind="back",
                go=[("The first term of A_lr", 12, STEPS - 1), ("B_0 of both", 14, 0), ("The result", 16, 0)],
                why=(
                    "Which task decides where θ_0 should go?",
                    """The flatter one. Task 1 is steep: after six steps 0.7⁶ = 0.12 of a nudge of its start is left,
                    of task 2 it is 0.9⁶ = 0.53. A task that learns fast forgets where it began, and has little to say
                    about it.""",
                ),
            ),
            section(
                "Close a road",
                """Without curvature each task's B stays as it was at its end, and the steep task keeps a say that it
                does not have: that is first-order MAML, summed over the tasks.""",
                kind="close",
                go=[("B_0", 14, 0)],
            ),
            section(
                "Say it",
                """Explain to a friend why a meta-gradient over many tasks is a sum, and what is summed. The table
                compares it with each task run alone, and with a rerun from a moved start.""",
                kind="say",
                go=[("The result", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, arguments),
        charts=_charts,
    )


def _check(trace: Any, arguments: dict[str, Any]) -> Sequence[Check]:
    h, c, a = (np.array(x) for x in (STEEPNESS, CENTERS, TARGETS))
    kept = (1 - LR * h) ** STEPS
    B_0 = (c + kept * (START - c) - a) * kept
    allowed, source = 50 * STEPS * np.finfo(float).eps, "closed form, powers of 1 − lr·h"

    def alone(task: int) -> Any:
        batch = tuple(x[task] for x in arguments["train_batches"](0))
        return meta_gradient(
            **{**arguments, "tasks": None, "train_batches": lambda j: batch, "val_batch": arguments["val_batch"][task]}
        )

    def started(x: float) -> float:
        moved = {"θ": torch.tensor(x, dtype=torch.float64)}
        return meta_gradient(**{**arguments, "theta_0": moved, "check": False}).val_loss.item()

    each, result = [alone(task) for task in range(2)], trace.result
    by_task = trace.data["q"]["B"]["cells"][0][0]["v"]
    slope, error = differences(started, START, 1e-2)
    A_lr, added = result.A_opt["lr"].item(), sum(one.A_opt["lr"].item() for one in each)
    return [
        *(Check(f"B_0 of task {n + 1}", by_task[n], B_0[n], source, allowed) for n in range(2)),
        Check("B_0 of the shared start", result.B_0["θ"].item(), float(B_0.sum()), "the sum of the two", allowed),
        Check("the same, rerun", result.B_0["θ"].item(), slope, "θ_0 moved: finite differences", 10 * error),
        Check("A_opt lr", A_lr, added, "each task alone, added", allowed),
    ]


def _charts(trace: Any) -> Sequence[dict[str, Any]]:
    cells = trace.data["q"]["B"]["cells"]
    return [
        chart(
            "The steep task forgets its start",
            {f"task {n + 1}": [cells[j][0]["v"][n] for j in range(STEPS + 1)] for n in range(2)},
            y="B_j",
            caption="""From right to left, as the sweep runs: task 1's price shrinks by 0.7 a step, task 2's by 0.9.
            Their sum at step 0 is the gradient of the shared start.""",
        )
    ]
