"""Lesson 4: MAML's B_0 beside FOMAML and Reptile, with the Taylor terms that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gimli_core.meta_gradient import meta_gradient
from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.step_through.lessons.lesson import Check, Lesson, chart, differences, section
from gimli_core.step_through.page.experiments import Experiments

__all__ = ["maml"]

HIDDEN, LR, STEPS = 4, 0.1, 5
GRID = torch.linspace(-3.5, 3.5, 43, dtype=torch.float64)


def maml() -> Lesson:
    """One task of sinusoid regression for a network of 13 parameters, adapted by five steps of SGD.

        MAML      B_0 = B_J·Π(I − lr·H_j), exact        FOMAML    B_J        Reptile   (θ_0 − θ_J)/lr
        MAML = g_val − lr·Σ H_val·g_j − lr·Σ H_j·g_val + O(lr²)    (Nichol et al. 2018, section 5.1)

    >>> import gimli_core as gimli
    >>> gimli.lessons.maml().verification.assert_ok()
    """
    generator = torch.Generator().manual_seed(3)
    theta_0 = {
        "in.weight": torch.randn(HIDDEN, 1, generator=generator, dtype=torch.float64),
        "in.bias": torch.randn(HIDDEN, generator=generator, dtype=torch.float64) / 2,
        "out.weight": torch.randn(1, HIDDEN, generator=generator, dtype=torch.float64) / 2,
        "out.bias": torch.zeros(1, dtype=torch.float64),
    }
    x = torch.linspace(-3, 3, 20, dtype=torch.float64)[:, None]
    support, query = (x[::2], 1.5 * torch.sin(x[::2] + 0.5)), (x[1::2], 1.5 * torch.sin(x[1::2] + 0.5))
    arguments: dict[str, Any] = {
        "problem": Problem(loss, loss, SGD(lr=LR)),
        "theta_0": theta_0,
        "train_batches": lambda j: support,
        "val_batch": query,
        "steps": STEPS,
        "phi_opt": {"lr": LR},
    }
    return Lesson(
        name="maml",
        title="MAML's B₀ beside FOMAML and Reptile",
        summary="FOMAML stops at line 9 and keeps B_J. MAML wants B₀, and the sweep is what lies between.",
        arguments=arguments,
        experiments=Experiments(
            vary={"lr": [0.005 * k for k in range(1, 42)]},
            roads=True,
            fit=lambda theta: {
                "x": GRID.tolist(),
                "y": [round(y, 4) for y in predicted(theta, GRID[:, None])[:, 0].tolist()],
                "support": torch.cat(support, 1).tolist(),
                "query": torch.cat(query, 1).tolist(),
            },
            twin={
                kind: {"kind": "network", "hidden": HIDDEN, "x": x[:, 0].tolist(), "y": y[:, 0].tolist()}
                for kind, (x, y) in (("loss", support), ("val", query))
            },
        ),
        sections=[
            section(
                "Adapt faster, or slower?",
                """A network of 13 parameters takes five steps of SGD towards ten points of a sine curve. L_val asks
                how well it then does on ten others. Guess whether a larger lr would help; then move it and watch the
                curve.""",
                kind="ask",
                go=[("The first gradient", 5, 0), ("The last step", 6, STEPS - 1)],
            ),
            section(
                "Nudge the start",
                """MAML's question is about θ_0: how should it move, so that the adapted network does better? Nudge an
                entry of θ_0 and see what the adapted loss does. B_0 says it for all 13 at once.""",
                kind="nudge",
                go=[("θ_0 and its B_0", 14, 0)],
            ),
            section(
                "Two roads lead to θ_j₊₁",
                """A nudge arrives as it is, and it turns the slope G_j by the Hessian. The second road is the only one
                that FOMAML does not take.""",
                kind="roads",
                go=[("A step", 6, 2)],
            ),
            section(
                "Turn it round: FOMAML stops here",
                """B_J is the gradient of L_val at the adapted weights. FOMAML uses it as if it were the gradient at
                θ_0: it skips the whole sweep. MAML wants B_0, and the sweep is what lies between.""",
                kind="turn",
                go=[("B_J", 9, STEPS), ("The first correction", 14, STEPS - 1)],
            ),
            section(
                "What the sweep adds is curvature alone",
                """SGD hands B on unchanged, so B_0 − B_J is exactly the sum of the terms V_j·∇²ℓ_j of line 14. Where
                the Hessian's entries are large, FOMAML is wrong.""",
                kind="back",
                go=[("The last correction", 14, 0), ("The result", 16, 0)],
                why=(
                    "And Reptile?",
                    """Reptile uses the sum of the inner gradients, (θ_0 − θ_J)/lr. To first order in lr all three are
                    made of gradients at θ_0 and of Σ H·g, which pulls the gradients of different batches together:
                    MAML has it in full, FOMAML half of it. The table checks that the rest shrinks as lr².""",
                ),
            ),
            section(
                "Close a road",
                """Without curvature you have FOMAML's gradient: beside the exact B_0 it differs in size, and in some
                entries in sign.""",
                kind="close",
                go=[("B_0", 14, 0)],
            ),
            section(
                "Say it",
                """Explain what MAML computes that FOMAML leaves out. The table compares B_0 with finite differences
                through the whole adaptation.""",
                kind="say",
                go=[("All joined", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, arguments),
        charts=lambda trace: _charts(trace, arguments),
    )


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean squared error of the network."""
    x, y = batch
    return ((predicted(theta, x) - y) ** 2).mean()


def predicted(theta: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the network says."""
    hidden = torch.tanh(x @ theta["in.weight"].T + theta["in.bias"])
    return hidden @ theta["out.weight"].T + theta["out.bias"]


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def _taylor_error(arguments: dict[str, Any], lr: float) -> float:
    """‖B_0 − (g_val − lr·J·(H_val·g + H·g_val))‖ at learning rate lr, with every derivative taken at θ_0."""
    theta_0, (support, query) = arguments["theta_0"], (arguments["train_batches"](0), arguments["val_batch"])
    zero = {k: v.clone().requires_grad_() for k, v in theta_0.items()}
    leaves = list(zero.values())

    def derivatives(batch: Any, direction: list[Tensor] | None) -> tuple[list[Tensor], Tensor]:
        g = torch.autograd.grad(loss(zero, {}, batch), leaves, create_graph=True)
        v = [x.detach() for x in g] if direction is None else direction
        Hv = torch.autograd.grad(list(g), leaves, v)
        return [x.detach() for x in g], torch.cat([x.reshape(-1) for x in Hv])

    g, _ = derivatives(support, None)
    g_val, H_val_g = derivatives(query, g)
    _, H_g_val = derivatives(support, g_val)
    taylor = torch.cat([x.reshape(-1) for x in g_val]) - lr * STEPS * (H_val_g + H_g_val)
    problem = Problem(loss, loss, SGD(lr=lr))
    exact = meta_gradient(**{**arguments, "problem": problem, "phi_opt": {}, "check": False})
    return float(torch.linalg.vector_norm(_flat(exact.B_0) - taylor))


def _check(trace: Any, arguments: dict[str, Any]) -> Sequence[Check]:
    checks = []
    for name, index in (("in.weight", 0), ("in.bias", 2), ("out.weight", 1), ("out.bias", 0)):

        def along(x: float, name: str = name, index: int = index) -> float:
            moved = {k: v.clone() for k, v in arguments["theta_0"].items()}
            moved[name].view(-1)[index] = x
            return meta_gradient(**{**arguments, "theta_0": moved, "check": False}).val_loss.item()

        slope, error = differences(along, arguments["theta_0"][name].view(-1)[index].item(), 1e-2)
        engine = trace.result.B_0[name].view(-1)[index].item()
        checks.append(Check(f"B_0 {name}[{index}]", engine, slope, "finite differences and their error", 10 * error))
    ratio = _taylor_error(arguments, 2e-4) / _taylor_error(arguments, 1e-4)
    checks.append(Check("Taylor rest, lr → lr/2", ratio, 4.0, "the rest is O(lr²), so it falls to a quarter", 0.05))
    q = trace.data["q"]
    swept = sum(q["curvature"]["cells"][j][0]["v"][0] for j in range(STEPS))
    gap = trace.result.B_0["in.weight"][0, 0].item() - q["B"]["cells"][STEPS][0]["v"][0]
    checks.append(Check("B_0 − B_J, in.weight[0]", gap, swept, "the sum of the curvature terms", 1e-13))
    return checks


def _charts(trace: Any, arguments: dict[str, Any]) -> Sequence[dict[str, Any]]:
    J, q = STEPS, trace.data["q"]

    def flat(name: str, j: int) -> list[float]:
        return [x for cell in q[name]["cells"][j] for x in cell["v"]]

    reptile = [(a - b) / (LR * J) for a, b in zip(flat("theta", 0), flat("theta", J), strict=True)]
    return [
        chart(
            "Three directions for θ₀, entry by entry",
            {"MAML  B_0": flat("B", 0), "FOMAML  B_J": flat("B", J), "Reptile  (θ_0 − θ_J)/(lr·J)": reptile},
            x="entry of θ",
            y="gradient",
            bars=[f"{k}[{i}]" for k, t in arguments["theta_0"].items() for i in range(t.numel())],
            caption="""FOMAML keeps most of MAML's direction here, but entries differ in size, and some in sign.
            Reptile follows the training points, and has not seen the others.""",
        )
    ]
