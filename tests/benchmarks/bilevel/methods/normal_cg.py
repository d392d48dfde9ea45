"""jaxopt's implicit differentiation, written plainly: conjugate gradients on the normal equations, H² v = H b.

Blondel et al. 2022, Efficient and modular implicit differentiation; `solve_normal_cg` is the default of its
`custom_root`. It stops at a residual of 1e-5 of its right side, as JAX's conjugate gradients do. A test holds it to
jaxopt itself, where that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.benchmarks.bilevel.methods import implicit
from tests.benchmarks.bilevel.methods.implicit import Product, by_solving
from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors

TOLERANCE = 1e-5


def dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(x * b[k]).sum() for k, x in a.items()]).sum()


def plus(a: Tensors, scale: Tensor, b: Tensors) -> Tensors:
    return {k: x + scale * b[k] for k, x in a.items()}


def solve(product: Product, b: Tensors, iterations: int) -> Tensors:
    """Conjugate gradients from 0 on H·H, as jax.scipy.sparse.linalg.cg runs them."""
    r = product(b)
    v, p, rr = {k: torch.zeros_like(x) for k, x in r.items()}, r, dot(r, r)
    enough = TOLERANCE**2 * rr
    for _ in range(iterations):
        if rr <= enough:
            break
        Ap = product(product(p))
        alpha = rr / dot(p, Ap)
        v, r = plus(v, alpha, p), plus(r, -alpha, Ap)
        rr, before = dot(r, r), rr
        p = plus(r, rr / before, p)
    return v


def normal_cg(problem: Bilevel) -> Iterator[Reached]:
    return by_solving(problem, lambda product, b: solve(product, b, implicit.ITERATIONS))
