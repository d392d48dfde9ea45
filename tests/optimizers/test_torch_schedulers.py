"""A scheduler of torch as a per-step hyperparameter: torch's own values, torch's own trajectory, and derivatives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import schedule

J = 30
METRICS = [1.0, 0.5, *[0.5] * (J - 2)]
Make = Callable[[torch.optim.Optimizer], Any]


def base_of(opt: torch.optim.Optimizer) -> float:
    return opt.param_groups[0]["lr"]


def chained(opt: torch.optim.Optimizer) -> Any:
    parts = [lr_scheduler.ConstantLR(opt, 0.1, total_iters=4), lr_scheduler.ExponentialLR(opt, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer=opt)


def sequential(opt: torch.optim.Optimizer) -> Any:
    parts = [lr_scheduler.LinearLR(opt, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(opt, J - 5)]
    return lr_scheduler.SequentialLR(opt, parts, milestones=[5])


# Those of torch, and the same with heights of their own: affine in lr, with a constant part.
SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda j: 1 / (1 + j)),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda j: 1 - 0.5 / (1 + j)),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 7, gamma=0.3),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [5, 6, 20]),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.25, total_iters=8),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.1, 0.7, total_iters=12),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=20, power=2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 12, eta_min=0.001),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 5, 2, eta_min=0.001),
    "ChainedScheduler": chained,
    "SequentialLR": sequential,
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, base_of(opt) / 10, base_of(opt), 4, mode="triangular2"),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, base_of(opt), total_steps=J),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=3),
}
NAMES = list(SCHEDULERS)


def test_every_scheduler_of_torch_is_here() -> None:
    plain = {"LRScheduler", "_LRScheduler"}
    known = {
        name
        for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(kind, lr_scheduler.LRScheduler) and name not in plain
    }
    assert known == set(SCHEDULERS)


def scheduled(name: str, **base: Any) -> dict[str, Tensor]:
    return schedule(SCHEDULERS[name], J, metrics=METRICS if name == "ReduceLROnPlateau" else None, **base)


def quadratic(theta: dict[str, Tensor], phi: Any, batch: Any) -> Tensor:
    return ((theta["w"] - 1) ** 2 * torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)).sum() / 2


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_trajectory_are_torchs(name: str, kind: str) -> None:
    """The values are equal to the last bit; theta_J is to the rounding of 30 steps."""
    w = torch.nn.Parameter(torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64))
    start = {"w": w.detach().clone()}
    optimizer: Any = torch.optim.SGD([w], lr=0.1, momentum=0.9) if kind == "SGD" else torch.optim.Adam([w], lr=0.1)
    moved = "momentum" if kind == "SGD" else "beta1"
    scheduler = SCHEDULERS[name](optimizer)
    seen: dict[str, list[float]] = {"lr": [], moved: []}
    for j in range(J):
        group = optimizer.param_groups[0]
        seen["lr"].append(group["lr"])
        seen[moved].append(group["momentum"] if kind == "SGD" else group["betas"][0])
        optimizer.zero_grad()
        quadratic({"w": w}, None, None).backward()
        optimizer.step()
        if j < J - 1:
            scheduler.step(*([METRICS[j]] if name == "ReduceLROnPlateau" else []))

    phi_opt = scheduled(name, lr=0.1, **{moved: 0.9})
    assert {k: v.tolist() for k, v in phi_opt.items()} == seen
    assert len(set(seen["lr"])) > 1, "a schedule that moves nothing tests nothing"
    assert (len(set(seen[moved])) > 1) == (name in ("CyclicLR", "OneCycleLR"))
    rule = getattr(gimli.optimizers, kind)(lr=0.1, **({"momentum": 0.9} if kind == "SGD" else {}))
    result = gimli.meta_gradient(
        gimli.Problem(quadratic, quadratic, rule), start, lambda j: None, None, steps=J, phi_opt=phi_opt
    )
    torch.testing.assert_close(result.theta_J["w"], w.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_by_the_base(name: str) -> None:
    """The validation loss's derivative by lr, through the schedule, is that of central differences."""
    theta = {"w": torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)}
    problem = gimli.Problem(quadratic, quadratic, gimli.optimizers.SGD(momentum=0.5))

    def loss(lr: Any) -> Tensor:
        others = {"momentum": 0.5} if name in ("CyclicLR", "OneCycleLR") else {}
        return gimli.unroll(
            problem, theta, lambda j: None, None, steps=J, phi_opt=scheduled(name, lr=lr, **others), check=False
        )

    lr = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    loss(lr).backward()
    h = 1e-3 * lr.item()
    points = [loss(lr.item() + k * h).item() for k in (-2, -1, 1, 2)]
    fourth_order = (points[0] - 8 * points[1] + 8 * points[2] - points[3]) / (12 * h)
    assert lr.grad is not None
    assert lr.grad.item() != 0
    assert lr.grad.item() == pytest.approx(fourth_order, rel=1e-8)


def test_the_slope_is_the_factor() -> None:
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found = schedule(SCHEDULERS["LambdaLR"], 4, lr=lr)["lr"]
    for j in range(4):
        (slope,) = torch.autograd.grad(found[j], lr, retain_graph=True)
        assert slope.item() == pytest.approx(1 / (1 + j), rel=1e-14)


def test_a_base_of_0_has_its_derivative() -> None:
    lr = torch.tensor(0.0, requires_grad=True)
    schedule(SCHEDULERS["StepLR"], 8, lr=lr)["lr"].sum().backward()
    assert lr.grad is not None
    assert lr.grad.item() == pytest.approx(7 + 0.3, rel=1e-6)


def test_momentum_has_a_derivative_where_the_scheduler_takes_it() -> None:
    momentum = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def make(opt: torch.optim.Optimizer) -> Any:
        return lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10, max_momentum=opt.param_groups[0]["momentum"])

    found = schedule(make, 10, lr=0.1, momentum=momentum)
    assert not found["lr"].requires_grad
    (slope,) = torch.autograd.grad(found["momentum"][0], momentum)
    assert slope.item() == pytest.approx(1, rel=1e-14)


class Squared(lr_scheduler.LRScheduler):
    def get_lr(self) -> list[float]:
        return [base**2 for base in self.base_lrs]


def other(opt: torch.optim.Optimizer) -> Any:
    return lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 3)


LEARNED = torch.tensor(0.1, requires_grad=True)
BAD: list[tuple[Any, Any, dict[str, Any], str]] = [
    (SCHEDULERS["ReduceLROnPlateau"], 5, {"lr": 0.1}, r"schedule\(metrics\).* 4 numbers.*got None"),
    (SCHEDULERS["ReduceLROnPlateau"], 5, {"lr": 0.1, "metrics": [1.0]}, r"schedule\(metrics\).* 4 numbers.*got 1"),
    (SCHEDULERS["OneCycleLR"], J + 2, {"lr": 0.1, "momentum": 0.9}, "inner step 31"),
    (SCHEDULERS["OneCycleLR"], J, {"lr": 0.1}, "momentum"),
    (lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, 9), 5, {"lr": LEARNED, "momentum": 0.9}, "whatever lr is"),
    (Squared, 5, {"lr": LEARNED}, "affine"),
    (lambda opt: opt, 5, {"lr": 0.1}, "got _Bare"),
    (other, 5, {"lr": 0.1}, "got StepLR of another"),
    ("StepLR", 5, {"lr": 0.1}, "a function of an optimizer; got str"),
    (SCHEDULERS["StepLR"], 0, {"lr": 0.1}, r"schedule\(steps\).*got 0"),
    (SCHEDULERS["StepLR"], 5, {"lr": torch.ones(2)}, r"schedule\(lr=…\).*got shape \[2\]"),
    (SCHEDULERS["StepLR"], 5, {"lr": {"a": 0.1}}, r"schedule\(lr=…\).*got dict"),
]


@pytest.mark.parametrize(("make", "steps", "given", "message"), BAD)
def test_bad_input(make: Any, steps: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        schedule(make, steps, **given)


def test_a_scheduler_of_ones_own_needs_no_derivative() -> None:
    assert schedule(Squared, 3, lr=0.5)["lr"].tolist() == [0.25] * 3
    assert math.isclose(schedule(Squared, 3, lr=LEARNED.detach())["lr"][0].item(), 0.01, rel_tol=1e-6)
