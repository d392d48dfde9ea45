"""Gradients that may be used, but not differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import SecondDerivativeError

__all__ = ["Once"]


class Once(torch.autograd.Function):
    """The identity on `count` gradients; differentiating them again raises `message`, and is never silently wrong.

    The tensors after the first `count` are what the gradients depend on.
    """

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[None, ...]:
        raise SecondDerivativeError(ctx.message)
