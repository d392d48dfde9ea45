"""What a network sees of numbers that range over many powers of ten."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_and_sign"]


def log_and_sign(x: Tensor, p: float = 10.0) -> tuple[Tensor, Tensor]:
    """The size and the sign of each number, both of the order of 1.

        (log|x| / p, sign x)     where |x| >= exp(-p)
        (-1, exp(p) x)           elsewhere

    Continuous, but for the sign's slope; its derivative is that of the branch, 0 and exp(p) at x = 0.

    Args:
        x: gradients or losses, of any shape.
        p: how many powers of e below 1 are told apart by their logarithm.

    Returns:
        two tensors of x's shape.

    Source: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", Appendix A.

    >>> import torch
    >>> [part.tolist() for part in log_and_sign(torch.tensor([1.0, -1.0, 0.0]))]
    [[0.0, 0.0, -1.0], [1.0, -1.0, 0.0]]
    """
    large = x.abs() >= math.exp(-p)
    size = torch.where(large, x, 1.0).abs()  # no logarithm of what the other branch is for: its derivative would be nan
    return torch.where(large, size.log() / p, -1.0), torch.where(large, x.sign(), math.exp(p) * x)
