"""Neumann's series: the backward sweep with theta frozen at theta_star."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gimli_core.implicit.ritz import lowest
from gimli_core.implicit.systems import Solution, Solver, Spectrum, System, check_steps, norm

__all__ = ["Neumann"]

FURTHER = 20  # terms beyond the last that counts, which show what is left out
LOOKED = 10  # products for the estimates of mu and kappa


@dataclass(frozen=True)
class Neumann(Solver):
    """k terms of the Neumann series, each one step of the backward sweep (lines 11-14) at theta_star.

        (B_0, S_0) = (grad L_val, 0);   V_k, B_{k+1}, S_{k+1} = sweep(B_k, S_k)
        v = -Σ_k V_k                    for plain SGD lr Σ_k (I - lr H)^k b, whose limit is H⁻¹ b

    It is what `gimli.Truncated(k)` computes of an inner loop that has converged, for every rule, its state included;
    the rule's own fixed point counts, also where that is not a zero of the gradient (decoupled weight decay).

    Args:
        terms: k.

    Raises:
        ArgumentError: a number below 1.

    Cost: 6F a term, in the memory of one, and of 20 terms more, which show how much is left out. That falls by the
    rule's contraction each term, 1 - lr mu for SGD: conjugate gradients take sqrt(kappa) steps where this takes kappa.
    Source: Lorraine et al. 2020.

    >>> import gimli_core as gimli
    >>> gimli.implicit.Neumann(20)
    Neumann(terms=20)
    """

    terms: int

    iterative = False
    remedy = "The terms still grow: lower the rule's learning rate, or take more terms. "

    def __post_init__(self) -> None:
        check_steps("Neumann(terms=…)", self.terms)

    def solve(self, system: System) -> Solution:
        assert system.sweep is not None
        B, S, v, left, sizes = system.b, None, torch.zeros_like(system.b), torch.zeros_like(system.b), []
        for k in range(self.terms + FURTHER):
            V, B, S = system.sweep(B, S)
            v, left = (v - V, left) if k < self.terms else (v, left - V)
            sizes.append(norm(V))
        ratio = contraction(sizes)
        converged = ratio < 1
        tail = torch.where(converged, ratio / torch.where(converged, 1 - ratio, 1.0), 0.0)
        size = norm(system.b)
        relative = norm(system.b - system.product(v)) / torch.where(size > 0, size, 1.0)
        seen = lowest(system.product, system.b, LOOKED)
        spectrum = Spectrum(seen.value.double(), seen.highest.double())
        steps = torch.full((len(v),), self.terms, device=v.device)
        # v is off by `left` and by what follows that, if all goes on as the last terms did.
        lacking = left - tail[:, None] * V
        return Solution(v, lacking, relative, steps, spectrum, converged, contraction=ratio)


def contraction(sizes: list[Tensor]) -> Tensor:
    """By how much a term is smaller than the one before, over the last `FURTHER` / 2 of them; 0 where they vanish.

    Sizes are [T]; so is this.
    """
    first, end = sizes[-1 - FURTHER // 2], sizes[-1]
    return torch.where(first > 0, (end / torch.where(first > 0, first, 1.0)) ** (2 / FURTHER), 0.0)
