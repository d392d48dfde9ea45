"""MINRES: for any symmetric Hessian, with a residual that never grows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gimli_core.errors import check_switch
from gimli_core.implicit.ritz import outermost
from gimli_core.implicit.systems import (
    Earlier,
    Solution,
    Solver,
    System,
    check_steps,
    check_tolerance,
    dot,
    norm,
    precise,
    tiny,
)

__all__ = ["MINRES"]


@dataclass(frozen=True)
class MINRES(Solver):
    """The minimal residual method on H v = b, row by row: ||b - H v|| over the Krylov space.

        H q_k = beta_k q_{k-1} + alpha_k q_k + beta_{k+1} q_{k+1}      Lanczos
        the tridiagonal matrix of alpha, beta is brought to upper triangular form by rotations as it grows

    Its residual falls at each step, where that of conjugate gradients may rise in between. It needs no positive
    Hessian: with `indefinite` it goes through a saddle, where theta_star is a function of phi all the same, though no
    inner loop that descends stays there.

    Args:
        rtol: stop where ||b - H v|| <= rtol ||b||, for each task by itself; by default 1e-6, or 3e-4 in float32.
        steps: at most so many.
        indefinite: go on where a Ritz value is not positive, instead of stopping with the direction.

    Raises:
        ArgumentError: a tolerance outside (0, 1), a number of steps below 1.

    Cost: a product with H a step (6F), and six vectors.
    Source: Paige and Saunders 1975.

    >>> import gimli_core as gimli
    >>> gimli.implicit.MINRES()
    MINRES(rtol=None, steps=1000, indefinite=False)
    """

    rtol: float | None = None
    steps: int = 1000
    indefinite: bool = False

    def __post_init__(self) -> None:
        check_tolerance("MINRES(rtol=…)", self.rtol)
        check_steps("MINRES(steps=…)", self.steps)
        check_switch("MINRES(indefinite=…)", self.indefinite)

    def tolerance(self, like: Tensor) -> float:
        return precise(self.rtol, like)

    def to(self, rtol: float) -> MINRES:
        return replace(self, rtol=max(self.rtol or 0.0, rtol))

    def solve(self, system: System) -> Solution:
        v, r = system.begin()
        of_b, phi = norm(system.b), norm(r)
        goal = self.tolerance(v) * of_b
        q, old_q = r / torch.where(phi > 0, phi, 1.0)[:, None], torch.zeros_like(r)
        d, old_d = torch.zeros_like(r), torch.zeros_like(r)
        beta, c, s = torch.zeros_like(phi), torch.ones_like(phi), torch.zeros_like(phi)
        old_c, old_s = torch.ones_like(phi), torch.zeros_like(phi)
        active, earlier = phi > 0, Earlier(v, phi, goal)
        steps = torch.zeros(len(v), dtype=torch.long, device=v.device)
        diagonal: list[Tensor] = []
        beside: list[Tensor] = []
        while bool(active.any()) and int(steps.max()) < self.steps:
            w = system.product(q) - beta[:, None] * old_q
            alpha = dot(q, w)
            w = w - alpha[:, None] * q
            following = norm(w)
            epsilon, delta_bar = old_s * beta, old_c * beta
            delta, gamma_bar = c * delta_bar + s * alpha, c * alpha - s * delta_bar
            gamma = torch.hypot(gamma_bar, following)
            sound = active & (gamma > 0)  # else b has a part that H does not reach
            pivot = torch.where(sound, gamma, 1.0)
            old_c, old_s, c, s = c, s, gamma_bar / pivot, following / pivot
            direction = (q - delta[:, None] * d - epsilon[:, None] * old_d) / pivot[:, None]
            moved = v + torch.where(sound, c * phi, 0.0)[:, None] * direction
            old, phi = phi.abs(), torch.where(sound, -s * phi, phi)
            size = phi.abs()
            earlier.note(sound, v, old, moved, size)
            diagonal.append(alpha)
            beside.append(following)
            v, old_d, d = moved, d, direction
            beta = following
            old_q, q = q, w / torch.where(following > 0, following, 1.0)[:, None]
            steps = steps + active
            active = sound & (size > goal) & (following > 0)
        spectrum = outermost(diagonal, beside, steps)
        r = system.b - system.product(v)
        converged = norm(r) <= 2 * goal  # the recurrence's residual is off by rounding
        relative = norm(r) / torch.where(of_b > 0, of_b, 1.0)
        flat = spectrum.lowest <= tiny(v) * spectrum.highest  # nan where there was no step
        bad = None
        if bool(flat.any()) and not self.indefinite:
            bad = torch.where(flat[:, None], system.b / torch.where(of_b > 0, of_b, 1.0)[:, None], 0.0)
        return Solution(v, earlier.lacking(v, norm(r)), relative, steps, spectrum, converged, bad)
