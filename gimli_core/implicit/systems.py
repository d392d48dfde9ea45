"""The linear system of an implicit gradient, what a solver makes of it, and what every solver shares.

    (H + damping I) v = b,   H = Hessian of ell at theta_star, b = grad L_val

Vectors are `[T, n]`: a row for each task, one where there are no tasks. H is block diagonal then, and a product costs
one product of the summed loss. Each task stops by itself: a row that has converged is not touched any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.derivatives.finite import finite
from gimli_core.errors import NotFiniteError, unexpected
from gimli_core.notation import State

__all__ = [
    "Earlier",
    "Solution",
    "Solver",
    "Spectrum",
    "System",
    "check_steps",
    "check_tolerance",
    "dot",
    "norm",
    "precise",
    "tiny",
]


@dataclass(eq=False)
class System:
    """A symmetric system, which counts its products.

    Args:
        apply: `[T, n] -> [T, n]`, the product with H + damping I.
        b: `[T, n]`, the right-hand side.
        start: `[T, n]`, where an iteration begins; None for 0.
        precondition: an approximation of the inverse, symmetric and positive definite; None for the identity.
        sweep: lines 11-14 at theta_star: from (B, S), with None for S = 0, to (V, B, S), all `[T, n]` but S.
    """

    apply: Callable[[Tensor], Tensor]
    b: Tensor
    start: Tensor | None = None
    precondition: Callable[[Tensor], Tensor] | None = None
    sweep: Callable[[Tensor, State | None], tuple[Tensor, Tensor, State]] | None = None
    products: int = 0

    def product(self, v: Tensor) -> Tensor:
        """(H + damping I) v."""
        self.products += 1
        product = self.apply(v)
        if not finite(product):
            raise NotFiniteError(
                "train_loss at theta_star: expected finite second derivatives; got inf or nan in a product with the "
                "Hessian. Keep the loss away from sqrt(0), log(0) and 0/0."
            )
        return product

    def begin(self) -> tuple[Tensor, Tensor]:
        """(v_0, b - H v_0)."""
        if self.start is None:
            return torch.zeros_like(self.b), self.b.clone()
        return self.start.clone(), self.b - self.product(self.start)


class Spectrum(NamedTuple):
    """Estimates of the eigenvalues of H + damping I, each `[T]`: Ritz values lie between the outermost ones."""

    lowest: Tensor
    highest: Tensor


class Solution(NamedTuple):
    """Where a solver stopped."""

    v: Tensor  # [T, n]
    lacking: Tensor  # [T, n], about what v lacks, in size
    residual: Tensor  # [T], ||b - H v|| / ||b||
    steps: Tensor  # [T]
    spectrum: Spectrum
    converged: Tensor  # [T], of what was asked for
    bad: Tensor | None = None  # [T, n], directions along which H is not positive, where rows have one; else 0
    contraction: Tensor | None = None  # [T], of the rule's step, where that is iterated


class Earlier:
    """An iterate of about ten times the residual that is asked for: the change since then shows what v lacks.

    It is, row by row, the first one within ten times the goal, or the one before the last where that is the same.
    """

    def __init__(self, v: Tensor, residual: Tensor, goal: Tensor) -> None:
        self.v, self.residual, self._goal = v, residual, goal
        self._near = torch.zeros_like(goal, dtype=torch.bool)

    def note(self, active: Tensor, v: Tensor, residual: Tensor, moved: Tensor, after: Tensor) -> None:
        """A step from v to `moved`, of `active` rows."""
        close = active & ~self._near & (after <= 10 * self._goal)
        if bool(close.any()):
            last = after <= self._goal
            there, size = torch.where(last[:, None], v, moved), torch.where(last, residual, after)
            self.v, self.residual = torch.where(close[:, None], there, self.v), torch.where(close, size, self.residual)
            self._near = self._near | close

    def lacking(self, v: Tensor, residual: Tensor) -> Tensor:
        """About what v lacks, in size: the change since then, which was most of what the earlier one lacked.

        It is taken as smaller only where the residual has fallen by more than a hundred times. An estimate: of random
        systems with kappa up to 1e5 it fell short in a few of 100, by up to thirty times, where the last step has found
        a direction that no step before had.
        """
        smaller = 100 * residual / torch.where(self.residual > 0, self.residual, 1.0)
        return smaller.clamp(max=1.0)[:, None] * (v - self.v)


class Solver(ABC):
    """A way to solve the system: `gimli.implicit.CG(…)`, `MINRES(…)`, `Neumann(…)`, `Dense()`."""

    preconditioned = False  # whether it takes a preconditioner
    iterative = True  # whether it takes a warm start
    remedy = "Give it more steps, damping=…, or a preconditioner. "  # where it has not converged

    @abstractmethod
    def solve(self, system: System) -> Solution:
        """The solution of a system, or where the solver stopped short of it."""

    def tolerance(self, like: Tensor) -> float | None:
        """The relative residual at which it stops, if it does so, in the precision of `like`."""
        return None

    def to(self, rtol: float) -> Solver:
        """The same solver, with a tolerance that is no tighter than `rtol`, if it has one."""
        return self


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row. Both [T, N]; [T]."""
    return (a * b).sum(1)


def norm(a: Tensor) -> Tensor:
    """Row by row. [T, N] to [T]."""
    length: Tensor = torch.linalg.vector_norm(a, dim=1)
    return length


def tiny(v: Tensor) -> float:
    """What rounding makes of a curvature of 0, in units of the largest one. `v` is of any shape: its dtype counts."""
    return 4 * torch.finfo(v.dtype).eps


def check_steps(argument: str, steps: Any) -> None:
    """Raise ArgumentError unless `steps` is a whole number >= 1."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise unexpected(argument, "a whole number >= 1", repr(steps), "It counts products with H.")


def precise(rtol: float | None, like: Tensor) -> float:
    """A tolerance; where none was given 1e-6, or what the precision of `like` allows if that is less.

    That is of any shape.
    """
    return rtol if rtol is not None else max(1e-6, torch.finfo(like.dtype).eps ** 0.5)


def check_tolerance(argument: str, value: Any) -> None:
    """Raise ArgumentError unless `value` is a number in (0, 1), or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        do = "It is the residual, relative to the right-hand side."
        raise unexpected(argument, "a number in (0, 1)", repr(value), do)
