"""hypertorch's fixed point, written from its paper: K terms of the Neumann series on the inner update.

    v ← v·∂Φ/∂theta + ∂L/∂theta,   Φ = theta − lr·∇ell,   K times from v = 0;   dL/dphi = ∂L/∂phi + v·∂Φ/∂phi

Grazzi et al. 2020, On the iteration complexity of hypergradient computation (Algorithm 2). Its own package is not on
the registry; a package of that name there is about hypergraphs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.benchmarks.bilevel.methods import implicit
from tests.benchmarks.bilevel.methods.implicit import Product, by_solving
from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors


def fixed_point(problem: Bilevel) -> Iterator[Reached]:
    lr = problem.lr

    def solve(product: Product, b: Tensors) -> Tensors:
        v = {k: torch.zeros_like(x) for k, x in b.items()}
        for _ in range(implicit.ITERATIONS):
            Hv = product(v)
            v = {k: v[k] - lr * Hv[k] + b[k] for k in b}
        return {k: lr * x for k, x in v.items()}  # ∂Φ/∂phi = −lr ∂²ell/∂theta∂phi

    return by_solving(problem, solve)
