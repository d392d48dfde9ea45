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

__all__ = ["maml"]

HIDDEN, LR, STEPS = 4, 0.1, 5


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
        "problem": Problem(loss, loss, SGD(lr=LR)), "theta_0": theta_0,
        "train_batches": lambda j: support, "val_batch": query, "steps": STEPS, "phi_opt": {"lr": LR},
    }  # fmt: skip
    return Lesson(
        name="maml",
        title="MAML's B₀ beside FOMAML and Reptile",
        summary="FOMAML stops at line 9 and keeps B_J. MAML wants B₀, and the sweep is what lies between.",
        arguments=arguments,
        sections=[
            section(
                "Forwards: adapt to a task",
                """A network of 13 parameters takes five steps of SGD towards ten points of a sine curve. MAML asks:
                how should θ_0 move so that the adapted θ_J does better on ten other points?""",
                go=[("The first gradient", 5, 0), ("The last step", 6, STEPS - 1)],
            ),
            section(
                "FOMAML stops here",
                """B_J is the gradient of the validation loss at the adapted weights. FOMAML uses it as if it were
                the gradient at θ_0: it skips the whole sweep.""",
                go=[("B_J", 9, STEPS)],
            ),
            section(
                "What the sweep adds is curvature, and nothing else",
                """SGD hands B on unchanged, so B_0 − B_J is exactly the sum of the curvature terms V_j·H_j of line
                14. Look at the whole Hessian below while you step: where its entries are large, FOMAML is wrong.""",
                go=[("The first correction", 14, STEPS - 1), ("The last", 14, 0)],
            ),
            section(
                "Reptile, and the Taylor terms",
                """Reptile uses only the sum of the inner gradients, (θ_0 − θ_J)/lr. To first order in lr all three
                are combinations of the same two things: gradients at θ_0, and the term Σ H·g that pulls the
                gradients of different batches together. MAML has that term in full, FOMAML half of it. The table
                checks that what is left over shrinks as lr².""",
                go=[("The result", 16, 0)],
            ),
        ],
        check=lambda trace: _check(trace, arguments),
        charts=lambda trace: _charts(trace, arguments),
    )


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean squared error of the network."""
    x, y = batch
    hidden = torch.tanh(x @ theta["in.weight"].T + theta["in.bias"])
    return ((hidden @ theta["out.weight"].T + theta["out.bias"] - y) ** 2).mean()


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
            caption="""FOMAML keeps most of MAML's direction here, but entries differ in size, and some in sign.
            Reptile follows the training points, and has not seen the others.""",
        )
    ]
