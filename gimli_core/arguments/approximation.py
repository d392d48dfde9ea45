"""What a meta-gradient may leave out on purpose: `approximation=`. The result names it; the exact one leaves out
nothing.

    FirstOrder()     line 14 without V_j Hessian
    Truncated(k)     lines 10-14 for the last k steps only; the others count as the identity
    ThetaOnly()      lines 11-14 read without the optimizer's state, as the paper prints them

`FirstOrder() & Truncated(5)` leaves out both.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from gimli_core.errors import unexpected

__all__ = ["Approximation", "FirstOrder", "ThetaOnly", "Truncated", "check_approximation"]


@dataclass(frozen=True)
class Approximation:
    """What is left out of an exact meta-gradient. Build one from `FirstOrder`, `Truncated` and `ThetaOnly`, with `&`.

    >>> import gimli_core as gimli
    >>> gimli.FirstOrder() & gimli.Truncated(5)
    FirstOrder() & Truncated(5)
    """

    first_order: bool = False
    last: int | None = None  # the sweep covers so many steps; None: all
    theta_only: bool = False

    def __and__(self, other: Approximation) -> Approximation:
        """Leave out what either leaves out; of two truncations the shorter sweep."""
        if not isinstance(other, Approximation):
            return NotImplemented
        swept = [k for k in (self.last, other.last) if k is not None]
        return Approximation(
            self.first_order or other.first_order, min(swept, default=None), self.theta_only or other.theta_only
        )

    def __repr__(self) -> str:
        parts = ["FirstOrder()"] * self.first_order
        parts += [f"Truncated({self.last})"] * (self.last is not None)
        return " & ".join(parts + ["ThetaOnly()"] * self.theta_only) or "None"

    def untruncated(self) -> Approximation:
        """The same for a sweep over all steps."""
        return Approximation(self.first_order, None, self.theta_only)

    def first(self, steps: int) -> int:
        """The step at which the sweep of a run with J = `steps` ends."""
        return 0 if self.last is None else max(0, steps - self.last)


class FirstOrder(Approximation):
    """Leave out line 14's curvature, V_j Hessian (in MAML: FOMAML). Line 13 stays for a phi_loss.

    Cost: without a phi_loss there is no second derivative, no graph, and a step takes 3F.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> gimli.meta_gradient(problem, theta_0, [one] * 2, one, approximation=gimli.FirstOrder()).B_0["w"]   # theta_J - 1
    tensor([-0.2500, -0.2500])
    """

    def __init__(self) -> None:
        super().__init__(first_order=True)


class Truncated(Approximation):
    """Sweep only the last k steps; the others count as the identity, and keep nothing.

    B_0 is then B_{J-k}, and S_0 is S_{J-k}. s_0's dependence on a hyperparameter still enters A_opt, by S_{J-k}. k >= J
    changes nothing.

    Args:
        steps: k.

    Raises:
        ArgumentError: a number below 1.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> [
    ...     gimli.meta_gradient(
    ...         problem, theta_0, [one] * 2, one, phi_opt={"lr": 0.5}, approximation=left_out
    ...     ).A_opt["lr"]
    ...     for left_out in (gimli.Truncated(1), None)
    ... ]
    [tensor(-0.2500, dtype=torch.float64), tensor(-0.5000, dtype=torch.float64)]
    """

    def __init__(self, steps: int) -> None:
        if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
            do = "Truncated(k) sweeps the last k steps only; FirstOrder() leaves out curvature."
            raise unexpected("Truncated(steps)", "a whole number k >= 1", repr(steps), do)
        super().__init__(last=int(steps))


class ThetaOnly(Approximation):
    """Lines 11-14 read without the optimizer's state: an ablation that shows what the paper's short form misses.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.25, momentum=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> [
    ...     gimli.meta_gradient(problem, theta_0, [one] * 2, one, approximation=left_out).B_0["w"]
    ...     for left_out in (gimli.ThetaOnly(), None)
    ... ]
    [tensor([-0.2461, -0.2461]), tensor([-0.1914, -0.1914])]
    """

    def __init__(self) -> None:
        super().__init__(theta_only=True)


def check_approximation(approximation: Any) -> Approximation:
    """`approximation=` as an object, of nothing left out where it is None. Raises ArgumentError."""
    if approximation is None:
        return Approximation()
    if isinstance(approximation, Approximation):
        return approximation
    actual = f"the class {approximation.__name__}" if isinstance(approximation, type) else repr(approximation)
    do = "Call it: gimli.FirstOrder(). None is the exact meta-gradient."
    expected = "None, or one of gimli.FirstOrder(), gimli.Truncated(k), gimli.ThetaOnly(), joined by &"
    raise unexpected("approximation", expected, actual, do)
