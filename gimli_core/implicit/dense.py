"""The Hessian as a matrix: for small problems, and to hold the others against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gimli_core.implicit.systems import Solution, Solver, Spectrum, System, norm, tiny

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Solver):
    """H as a matrix, column by column, and its eigenvalues.

        H = U diag(lambda) U',   v = U diag(1 / lambda) U' b

    mu and kappa are exact here, and so is a direction along which H is not positive. One round of refinement follows,
    whose correction shows how far off the first solution was.

    Cost: n products with H (6F each) for n numbers in theta, of one task; the memory of n² numbers a task, time n³.

    >>> import gimli_core as gimli
    >>> gimli.implicit.Dense()
    Dense()
    """

    iterative = False

    def solve(self, system: System) -> Solution:
        T, n = system.b.shape
        unit = torch.eye(n, dtype=system.b.dtype, device=system.b.device)
        H = torch.stack([system.product(e.expand(T, n)) for e in unit], 2)
        values, U = torch.linalg.eigh((H + H.transpose(1, 2)) / 2)
        highest = values.abs().amax(1)
        flat = values[:, 0] <= n * tiny(U) * highest
        bad = torch.where(flat[:, None], U[:, :, 0], 0.0) if bool(flat.any()) else None

        def inverse(b: Tensor) -> Tensor:
            along = torch.einsum("tnk,tn->tk", U, b) / torch.where(flat[:, None], 1.0, values)
            return torch.einsum("tnk,tk->tn", U, along)

        first = inverse(system.b)
        change = inverse(system.b - system.product(first))
        v = first + change
        size = norm(system.b)
        relative = norm(system.b - system.product(v)) / torch.where(size > 0, size, 1.0)
        steps = torch.full((T,), n, device=v.device)
        spectrum = Spectrum(values[:, 0].double(), values[:, -1].double())
        return Solution(v, change, relative, steps, spectrum, torch.ones_like(flat), bad)
