"""Adagrad, as in `torch.optim.Adagrad`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.singular import sqrt_slope
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer, reduce_like

__all__ = ["Adagrad"]


@dataclass(frozen=True, eq=False)
class Adagrad(ElementwiseOptimizer):
    """Adagrad (Duchi et al. 2011) with learning-rate decay and weight decay.

        g  = ±G + weight_decay·theta                    (minus when maximize)
        x' = x + g²,   x_0 = initial_accumulator_value
        theta' = theta - lr / (1 + (t - 1)·lr_decay) · g / (sqrt(x') + eps)

    Args:
        lr, lr_decay, weight_decay, initial_accumulator_value, eps: numbers, or any form
            that a meta-parameter takes.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state |theta|.
    Source: `torch.optim.Adagrad`; proof in appendix_proofs/adagrad.py, NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> adagrad = gimli.optimizers.Adagrad(lr=0.5, eps=0.25)
    >>> adagrad.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # -lr / eps at G = 0
    tensor([-2.])
    """

    lr: Any = hyperparameter(1e-2)
    lr_decay: Any = hyperparameter(0.0)
    weight_decay: Any = hyperparameter(0.0)
    initial_accumulator_value: Any = hyperparameter(0.0)
    eps: Any = hyperparameter(1e-10)
    maximize: bool = False

    def slots(self) -> tuple[str, ...]:
        return ("sum",)

    def _initial(self, slot: str, theta: Tensor, h: dict[str, Tensor]) -> Tensor:
        return h["initial_accumulator_value"].to(theta).expand_as(theta).clone()

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        name = "initial_accumulator_value"
        if name not in wanted:
            return {}
        return {k: {name: reduce_like(S_k, hyper[k][name])} for k, S_k in S_0["sum"].items()}

    def _gradient(self, theta: Tensor, G: Tensor, h: dict[str, Tensor]) -> Tensor:
        g = -G if self.maximize else G
        return g + h["weight_decay"] * theta if self.uses("weight_decay") else g

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensors]:
        g = self._gradient(theta, G, h)
        x = torch.addcmul(s["sum"], g, g)
        rate = h["lr"] / (1 + (t - 1) * h["lr_decay"])
        return torch.addcdiv(theta, g * -rate, x.sqrt() + h["eps"]), {"sum": x}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g = self._gradient(theta, G, h)
        root = torch.addcmul(s["sum"], g, g).sqrt()
        d = root + h["eps"]
        decay = 1 + (t - 1) * h["lr_decay"]
        rate = h["lr"] / decay
        u = g / d
        d_bar = rate * B * u / d
        x_bar = S["sum"] + d_bar * sqrt_slope(root)
        g_bar = 2 * g * x_bar - rate * B / d
        A: Thunks = {
            "lr": lambda: -B * u / decay,
            "lr_decay": lambda: B * u * (rate * (t - 1) / decay),
            "weight_decay": lambda: g_bar * theta,
            "eps": lambda: d_bar,
        }
        V = -g_bar if self.maximize else g_bar
        B_j = B + h["weight_decay"] * g_bar if self.uses("weight_decay") else B
        return V, B_j, {"sum": x_bar}, A
