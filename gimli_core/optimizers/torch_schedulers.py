"""Every scheduler of `torch.optim.lr_scheduler` as a per-step hyperparameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from gimli_core.errors import unexpected

__all__ = ["schedule"]

MakeScheduler = Callable[[torch.optim.Optimizer], LRScheduler]
PROBE = 0.125  # how far from a base value, relative to it, its slope is read off


def schedule(
    make_scheduler: MakeScheduler,
    steps: int,
    *,
    lr: float | Tensor,
    metrics: Sequence[float] | None = None,
    **others: float | Tensor,
) -> dict[str, Tensor]:
    """What a scheduler of torch sets in each of J steps, as a phi_opt.

    The scheduler itself runs, on an optimizer without parameters. Every scheduler of torch is affine in the value
    that it starts from,

        lr_j = c_j + lr·f_j          (c_j = 0 for most)

    so what is returned is exactly what torch sets, and its derivative by `lr` is f_j. A scheduler whose heights
    are its own arguments (OneCycleLR, CyclicLR, eta_min of CosineAnnealingLR) may take them from the optimizer
    instead: `lambda opt: OneCycleLR(opt, opt.param_groups[0]["lr"], total_steps=J)` has a derivative by its peak.

    Args:
        make_scheduler: a function from a `torch.optim` optimizer to its scheduler, `lambda opt: StepLR(opt, 10)`.
        steps: J; the scheduler steps after each inner step.
        lr: the value that the scheduler starts from: a number, or a 0-dimensional tensor, which may require grad.
        metrics: for ReduceLROnPlateau, which follows them: one number after each inner step but the last, or more.
        others: what else the scheduler moves or needs, likewise: `momentum`, or `beta1` (and `beta2`), as
            OneCycleLR and CyclicLR cycle them.

    Returns:
        dict: a float64 tensor [J] for `lr` and for each of `others`.

    Raises:
        ArgumentError: a scheduler that cannot be made or stepped so often, one that follows metrics without them,
            one that is not affine in a value that requires grad, or does not depend on any such value.

    Cost: J steps of the scheduler in plain numbers, and 2J more for each value that requires grad.
    Source: `torch.optim.lr_scheduler`.

    >>> import torch, gimli_core as gimli
    >>> lr = torch.tensor(0.5, requires_grad=True)
    >>> halved = lambda opt: torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    >>> phi_opt = gimli.optimizers.schedule(halved, 5, lr=lr)
    >>> phi_opt["lr"].tolist()
    [0.5, 0.5, 0.25, 0.25, 0.125]
    >>> phi_opt["lr"].sum().backward()
    >>> lr.grad
    tensor(3.2500)
    """
    start = {"lr": lr, **others}
    _check(make_scheduler, steps, start)
    base = {name: float(v.detach() if isinstance(v, Tensor) else v) for name, v in start.items()}

    def run(**moved: float) -> dict[str, Tensor]:
        return _run(make_scheduler, steps, {**base, **moved}, metrics)

    values = run()
    learned = {name: v for name, v in start.items() if isinstance(v, Tensor) and v.requires_grad}
    reached = dict.fromkeys(learned, False)
    for name, tensor in learned.items():
        distance = PROBE * (abs(base[name]) or 1.0)
        below, above = run(**{name: base[name] - distance}), run(**{name: base[name] + distance})
        nothing = tensor.double() - base[name]  # the number 0, with the derivative 1
        for key, at in values.items():
            _check_affine(name, key, below[key], at.detach(), above[key])
            slope = (above[key] - below[key]) / (2 * distance)
            if bool(slope.any()):
                reached[name] = True
                values[key] = at.to(tensor.device) + slope.to(tensor.device) * nothing
    for name in [name for name, reaches in reached.items() if not reaches]:
        raise unexpected(
            f"schedule({name}=…)",
            "a scheduler that depends on a value that requires grad",
            f"one that sets the same whatever {name} is",
            f'Let it take its heights from the optimizer, opt.param_groups[0]["{name}"], or detach the value.',
        )
    devices = {name: v.device for name, v in start.items() if isinstance(v, Tensor)}
    return {key: v.to(devices.get(key, v.device)) for key, v in values.items()}


class _Bare(torch.optim.Optimizer):
    """One group with the given options, and a step that does nothing."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__([torch.zeros(())], dict(options))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def _run(
    make_scheduler: MakeScheduler, steps: int, base: Mapping[str, float], metrics: Sequence[float] | None
) -> dict[str, Tensor]:
    """`{hyperparameter: [J]}`: the values before each step."""
    options: dict[str, Any] = {k: v for k, v in base.items() if k not in ("beta1", "beta2")}
    if "beta1" in base or "beta2" in base:
        options["betas"] = (base.get("beta1", 0.9), base.get("beta2", 0.999))
    optimizer = _Bare(options)
    scheduler = _made(make_scheduler, optimizer, steps, metrics)
    columns: dict[str, list[float]] = {name: [] for name in base}
    for j in range(steps):
        group = optimizer.param_groups[0]
        present = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
        for name, column in columns.items():
            column.append(float(present[name]))
        optimizer.step()
        if j < steps - 1:
            _advance(scheduler, j, metrics)
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}


def _made(make_scheduler: MakeScheduler, optimizer: _Bare, steps: int, metrics: Sequence[float] | None) -> LRScheduler:
    try:
        scheduler = make_scheduler(optimizer)
    except (ValueError, KeyError, TypeError) as error:
        do = "Name what the scheduler moves: schedule(…, momentum=0.9), or beta1=0.9, beside lr."
        raise unexpected("schedule(make_scheduler)", "a scheduler", f"{error}", do) from error
    if getattr(scheduler, "optimizer", None) is not optimizer or not hasattr(scheduler, "step"):
        raise unexpected(
            "schedule(make_scheduler)",
            "a torch.optim.lr_scheduler of the optimizer that it is called with",
            f"{type(scheduler).__name__} of another" if hasattr(scheduler, "step") else type(scheduler).__name__,
            "For example lambda opt: torch.optim.lr_scheduler.StepLR(opt, 10).",
        )
    if isinstance(scheduler, ReduceLROnPlateau) and (metrics is None or len(metrics) < steps - 1):
        raise unexpected(
            "schedule(metrics)",
            f"{steps - 1} numbers, one after each inner step but the last, since ReduceLROnPlateau follows them",
            "None" if metrics is None else f"{len(metrics)}",
            "Give those of an earlier run. The schedule is then fixed: how it follows them has no derivative.",
        )
    return scheduler


def _advance(scheduler: LRScheduler, j: int, metrics: Sequence[float] | None) -> None:
    try:
        if isinstance(scheduler, ReduceLROnPlateau) and metrics is not None:
            scheduler.step(metrics[j])
        else:
            scheduler.step()
    except ValueError as error:
        do = "Make it for as many steps as the inner loop has."
        raise unexpected(
            "schedule(make_scheduler)", f"a scheduler that reaches inner step {j + 1}", f"{error}", do
        ) from error


def _check(make_scheduler: Any, steps: Any, start: Mapping[str, Any]) -> None:
    if not callable(make_scheduler):
        do = "For example lambda opt: torch.optim.lr_scheduler.StepLR(opt, 10)."
        actual = type(make_scheduler).__name__
        raise unexpected("schedule(make_scheduler)", "a function of an optimizer", actual, do)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise unexpected("schedule(steps)", "a whole number from 1", repr(steps), "Give J.")
    for name, value in start.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number and not (isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()):
            actual = f"shape {list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            do = "Call it once for each group or tensor, and put the results into a dict."
            expected = "a number or a 0-dimensional floating-point tensor"
            raise unexpected(f"schedule({name}=…)", expected, actual, do)


def _check_affine(name: str, key: str, below: Tensor, at: Tensor, above: Tensor) -> None:
    bend = (above + below - 2 * at).abs()
    if bool((bend > 1e-9 * torch.maximum(above.abs(), below.abs())).any()):
        j = int(bend.argmax())
        raise unexpected(
            f"schedule({name}=…)",
            "a scheduler that is affine in a value that requires grad",
            f"{key} of step {j}, which is not (it is clipped near {at[j]:g}, or computed in another way)",
            f"Compute the schedule as a [J] tensor from {name}, or detach the value.",
        )
