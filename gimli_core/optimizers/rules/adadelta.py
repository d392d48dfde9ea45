"""Adadelta, as in `torch.optim.Adadelta`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay
from gimli_core.optimizers.rules.singular import sqrt_slope
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["Adadelta"]


class _Parts(NamedTuple):
    g: Tensor
    v: Tensor  # v', the mean square of gradients
    std: Tensor  # sqrt(v' + eps)
    past: Tensor  # sqrt(a + eps), a the mean square of updates
    delta: Tensor  # g·past / std
    a: Tensor  # a'


@dataclass(frozen=True, eq=False)
class Adadelta(WeightDecay, ElementwiseOptimizer):
    """Adadelta (Zeiler 2012): steps as large as past steps, in units of past gradients.

        g     = ±G + weight_decay·theta                    (minus when maximize)
        v'    = rho·v + (1 - rho)·g²
        delta = g·sqrt(a + eps) / sqrt(v' + eps)
        a'    = rho·a + (1 - rho)·delta²
        theta' = theta - lr·delta

    Args:
        lr, rho, eps, weight_decay: numbers, or any form that a meta-parameter takes.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state 2|theta|. Smooth everywhere when eps > 0.
    Source: `torch.optim.Adadelta`; proof in appendix_proofs/adadelta.py.

    >>> import torch, gimli_core as gimli
    >>> adadelta = gimli.optimizers.Adadelta(lr=0.5)
    >>> adadelta.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # -lr at G = 0, where delta = g
    tensor([-0.5000])
    """

    lr: Any = hyperparameter(1.0)
    rho: Any = hyperparameter(0.9, below=math.nextafter(1.0, 2.0))
    eps: Any = hyperparameter(1e-6)
    weight_decay: Any = hyperparameter(0.0)
    maximize: bool = False

    def slots(self) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors) -> _Parts:
        g = self._descent(theta, G, h)
        v = torch.addcmul(s["square_avg"] * h["rho"], (1 - h["rho"]) * g, g)
        std, past = (v + h["eps"]).sqrt(), (s["acc_delta"] + h["eps"]).sqrt()
        delta = past / std * g
        return _Parts(g, v, std, past, delta, torch.addcmul(s["acc_delta"] * h["rho"], (1 - h["rho"]) * delta, delta))

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        p = self._parts(theta, s, G, h)
        return theta - h["lr"] * p.delta, {"square_avg": p.v, "acc_delta": p.a}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, _, std, past, delta, _ = self._parts(theta, s, G, h)
        rho, a_bar = h["rho"], S["acc_delta"]
        delta_bar = 2 * (1 - rho) * delta * a_bar - h["lr"] * B
        v_eps_bar = -delta_bar * delta / std * sqrt_slope(std)  # of v' + eps, and of a + eps
        a_eps_bar = delta_bar * g / std * sqrt_slope(past)
        v_bar = S["square_avg"] + v_eps_bar
        A: Thunks = {
            "lr": lambda: -B * delta,
            "rho": lambda: v_bar * (s["square_avg"] - g * g) + a_bar * (s["acc_delta"] - delta * delta),
            "eps": lambda: v_eps_bar + a_eps_bar,
        }
        V, B_j = self._decay_pullback(theta, h, B, delta_bar * past / std + 2 * (1 - rho) * g * v_bar, A)
        return V, B_j, {"square_avg": rho * v_bar, "acc_delta": rho * a_bar + a_eps_bar}, A
