"""What methods that differentiate at the minimum share: theta_J taken for it, and the last two products."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors, descended, gradient, leaves, outer_loop

ITERATIONS = 20  # that a linear solver is given

Product = Callable[[Tensors], Tensors]
Solve = Callable[[Product, Tensors], Tensors]


def by_solving(problem: Bilevel, solve: Solve) -> Iterator[Reached]:
    """dL/dphi = ∂L/∂phi − v·∂²ell/∂theta∂phi,   v = solve(v -> v·∂²ell/∂theta², ∂L/∂theta), all at theta_J."""

    def hypergradient(phi: Tensors) -> tuple[Tensor, Tensors]:
        theta = leaves(descended(problem, phi))
        G = gradient(problem.ell(theta, phi), theta, create_graph=True)
        loss = problem.L(theta, phi)
        direct = gradient(
            loss, {**{f"theta {k}": v for k, v in theta.items()}, **{f"phi {k}": v for k, v in phi.items()}}
        )

        def product(v: Tensors, of: Tensors = theta) -> Tensors:
            along = torch.stack([(g * v[k]).sum() for k, g in G.items()]).sum()
            return gradient(along, of, retain_graph=True)

        v = solve(product, {k: direct[f"theta {k}"] for k in theta})
        mixed = product(v, phi)
        return loss, {k: direct[f"phi {k}"] - mixed[k] for k in phi}

    return outer_loop(problem, hypergradient)
