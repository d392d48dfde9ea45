"""The square root where its argument is exactly zero.

NOTE [derivative at zero]
Adam and Adagrad divide by sqrt(x) + eps, with x a sum of squared gradients. At
x = 0 the factor d sqrt(x)/dx is infinite, but it only ever multiplies a term
that is exactly zero there (the numerator, or the factor 2g of dx/dg), and the
product tends to 0: near g = 0 the update is linear in g with slope -lr/eps. The
derivative therefore exists, and setting the factor to 0 gives it exactly: no mask
on the result, no shifted root. Where the numerator is not zero (x = 0 with a warm
first moment, or beta2 = 0) the update has a kink, and the same choice gives the mean of
its two one-sided derivatives by g; by x itself, and by beta2 = 0, there is none (it is infinite), and 0 is returned.
Proof: appendix_proofs/zero_gradient.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["flat_sqrt", "inverse_root", "sqrt_slope"]


def sqrt_slope(root: Tensor) -> Tensor:
    """d sqrt(x)/dx = 1 / (2 sqrt(x)), and 0 at x = 0, given root = sqrt(x). Any shape."""
    return inverse_root(root).mul_(0.5)


def inverse_root(root: Tensor) -> Tensor:
    """1 / sqrt(x), and 0 at x = 0, given root = sqrt(x). Any shape."""
    # In eager mode `where` is two passes more; compiled, it costs nothing, and nan_to_num looks at one entry at a time.
    if torch.compiler.is_compiling():
        return torch.where(root == 0, 0.0, 1 / root)
    # 1 / root is infinite at root = 0 alone: the root of the smallest number is far from 0. A nan stays. What
    # `reciprocal` gives, it needs for its own derivative: a pullback may be differentiated.
    return root.reciprocal().nan_to_num(nan=float("nan"), posinf=0.0)


def flat_sqrt(x: Tensor) -> Tensor:
    """sqrt(x) for autograd, with derivative 0 at x = 0: for the `step` of a `DerivedOptimizer`. Any shape."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
