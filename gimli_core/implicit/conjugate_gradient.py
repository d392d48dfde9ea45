"""Conjugate gradients: for a Hessian that is positive definite, as it is at a minimum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gimli_core.implicit.ritz import outermost
from gimli_core.implicit.systems import (
    Earlier,
    Solution,
    Solver,
    Spectrum,
    System,
    check_steps,
    check_tolerance,
    dot,
    norm,
    precise,
    tiny,
)

__all__ = ["CG"]

ROUNDS = 3  # the recurrence's residual drifts from the true one: it is begun again from there, so often at most


class _Run(NamedTuple):
    """Where the recurrences stand; the fields are those of `Solution`."""

    v: Tensor
    steps: Tensor
    spectrum: Spectrum | None
    bad: Tensor | None = None


@dataclass(frozen=True)
class CG(Solver):
    """Conjugate gradients on H v = b, row by row.

        alpha = <r, z> / <p, H p>;   v += alpha p;   r -= alpha H p;   z = M⁻¹ r
        beta  = <r, z>' / <r, z>;    p = z + beta p

    It minimises <v - v*, H (v - v*)> over the Krylov space. alpha and beta are the entries of the tridiagonal matrix of
    the Krylov space, which gives the Ritz values. A direction with <p, H p> <= 0 stops it.

    Args:
        rtol: stop where ||b - H v|| <= rtol ||b||, for each task by itself; by default 1e-6, or 3e-4 in float32. The
            residual is computed anew at the end; where it has drifted, the iteration is begun again from there.
        steps: at most so many.

    Raises:
        ArgumentError: a tolerance outside (0, 1), a number of steps below 1.

    Cost: a product with H a step (6F), and four vectors. The steps go with sqrt(kappa) log(1 / rtol).
    Source: Hestenes and Stiefel 1952.

    >>> import gimli_core as gimli
    >>> gimli.implicit.CG(rtol=1e-8)
    CG(rtol=1e-08, steps=1000)
    """

    rtol: float | None = None
    steps: int = 1000

    preconditioned = True

    def __post_init__(self) -> None:
        check_tolerance("CG(rtol=…)", self.rtol)
        check_steps("CG(steps=…)", self.steps)

    def tolerance(self, like: Tensor) -> float:
        return precise(self.rtol, like)

    def to(self, rtol: float) -> CG:
        return replace(self, rtol=max(self.rtol or 0.0, rtol))

    def solve(self, system: System) -> Solution:
        v, r = system.begin()
        size = norm(system.b)
        goal = self.tolerance(v) * size
        earlier = Earlier(v, norm(r), goal)
        run = _Run(v, torch.zeros(len(v), dtype=torch.long, device=v.device), None)
        for _ in range(ROUNDS):
            spectrum, run = run.spectrum, self._run(system, run, r, goal, earlier)
            run = run if spectrum is None else run._replace(spectrum=spectrum)  # the first run's has most steps
            r = system.b - system.product(run.v)
            converged = norm(r) <= goal
            if run.bad is not None or bool((converged | (run.steps >= self.steps)).all()):
                break
        assert run.spectrum is not None
        relative = norm(r) / torch.where(size > 0, size, 1.0)
        lacking = earlier.lacking(run.v, norm(r))
        return Solution(run.v, lacking, relative, run.steps, run.spectrum, converged, run.bad)

    def _run(self, system: System, last: _Run, r: Tensor, goal: Tensor, earlier: Earlier) -> _Run:
        """The recurrences from the last run's v, whose residual is r."""
        M = system.precondition or (lambda r: r)
        v, steps, _, bad = last
        size, z = norm(r), M(r)
        p, rz = z, dot(r, z)
        # Always a first step: what it changes shows how far off a warm start was.
        active = (size > goal) | ((steps == 0) & (size > 0))
        highest = torch.zeros_like(rz)
        old_alpha, old_beta = torch.ones_like(rz), torch.zeros_like(rz)
        diagonal: list[Tensor] = []
        beside: list[Tensor] = []
        taken = steps
        while bool(active.any()) and int(steps.max()) < self.steps:
            Hp = system.product(p)
            curvature, length = dot(p, Hp), dot(p, p)
            highest = torch.where(active, torch.maximum(highest, norm(Hp) / length.sqrt()), highest)
            flat = active & ~(curvature > tiny(p) * highest * length)
            if bool(flat.any()):
                bad = torch.where(flat[:, None], p / length.sqrt()[:, None], 0.0)
                break
            alpha = torch.where(active, rz / torch.where(active, curvature, 1.0), 0.0)
            moved, r = v + alpha[:, None] * p, r - alpha[:, None] * Hp
            z, old, size = M(r), size, norm(r)
            beta = torch.where(active, dot(r, z) / torch.where(active, rz, 1.0), 0.0)
            earlier.note(active, v, old, moved, size)
            inverse = 1 / torch.where(active, alpha, 1.0)
            diagonal.append(inverse + old_beta / old_alpha)
            beside.append(beta.clamp(min=0).sqrt() * inverse)
            old_alpha, old_beta = torch.where(active, alpha, 1.0), beta
            v, p, rz = moved, z + beta[:, None] * p, torch.where(active, dot(r, z), rz)
            steps = steps + active
            active = active & (size > goal)
        return _Run(v, steps, outermost(diagonal, beside, steps - taken), bad)
