"""Matrices that stand for the curvature of an inner loss at one point, for networks of a few thousand numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

__all__ = ["gauss_newton", "hessian"]

AT_ONCE = 128  # rows


def hessian(loss: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """H = grad² loss at theta [n]: [n, n]. Cost: n times 6F."""
    H: Tensor = jacrev(grad(loss), chunk_size=AT_ONCE)(theta)
    return H


def gauss_newton(outputs: Callable[[Tensor], Tensor], output_loss: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """J' (grad² of output_loss at f) J, with f = outputs(theta) and J = df/dtheta: [n, n], of theta [n].

    It is the Hessian of output_loss(outputs(theta)) but for the curvature of the outputs, and is not negative where
    output_loss is convex. Cost: n products, about 8F each, AT_ONCE of them at a time.

    Source: Schraudolph 2002, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent.
    """

    f, transposed = vjp(outputs, theta)  # type: ignore[misc]
    # The transpose of the transpose: v -> J v.
    _, forwards = vjp(lambda u: transposed(u)[0], torch.zeros_like(f))  # type: ignore[misc]
    _, of_outputs = vjp(grad(output_loss), f)  # type: ignore[misc]

    def product(v: Tensor) -> Tensor:
        row: Tensor = transposed(of_outputs(forwards(v)[0])[0])[0]
        return row

    G: Tensor = vmap(product, chunk_size=AT_ONCE)(torch.eye(len(theta), dtype=theta.dtype, device=theta.device))
    return G
