"""Clipping by value, as `torch.nn.utils.clip_grad_value_` does it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from gimli_core.notation import Hyper, Tensors
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.tensorwise import reduce_like
from gimli_core.optimizers.wrappers.interface import GradientWrapper

__all__ = ["ClipValue"]


@dataclass(frozen=True, eq=False)
class ClipValue(GradientWrapper):
    """Every element of the gradient, brought into [-clip_value, clip_value].

    Beyond the bound the derivative with respect to G is 0, within it 1, on it the mean of both.

    Args:
        inner: the optimizer that gets the clipped gradient.
        clip_value: a number, or any form that a meta-parameter takes.

    Raises:
        ArgumentError: a number out of range.

    Cost: no state. Source: `torch.nn.utils.clip_grad_value_`.

    >>> import torch, gimli_core as gimli
    >>> clipped = gimli.optimizers.ClipValue(gimli.optimizers.SGD(lr=1.0), clip_value=0.5)
    >>> theta, G = {"w": torch.zeros(2)}, {"w": torch.tensor([3.0, -0.25])}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in clipped.hyperparameters().items()}}
    >>> clipped.step(theta, clipped.initial_state(theta, hyper), G, hyper)[0]["w"]
    tensor([-0.5000,  0.2500])
    """

    clip_value: Any = hyperparameter(1.0)

    def _transform(self, theta: Tensors, G: Tensors, hyper: Hyper) -> Tensors:
        clipped = {}
        for k, g in G.items():
            bound = hyper[k]["clip_value"].to(g)
            clipped[k] = torch.minimum(torch.maximum(g, -bound), bound)
        return clipped

    def _transform_pullback(
        self, theta: Tensors, G: Tensors, hyper: Hyper, adjoint: Tensors, wanted: Collection[str]
    ) -> tuple[Tensors, Tensors, dict[str, Tensors]]:
        V, A = {}, {}
        for k, g in G.items():
            bound = hyper[k]["clip_value"]
            within = (1 + torch.sign(bound - g.abs())) / 2
            V[k] = adjoint[k] * within
            if "clip_value" in wanted:
                A[k] = {"clip_value": reduce_like(adjoint[k] * g.sign() * (1 - within), bound)}
        return V, {}, A
