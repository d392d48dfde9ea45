"""Adamax, as in `torch.optim.Adamax`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["Adamax"]


class _Parts(NamedTuple):
    g: Tensor
    m: Tensor
    c1: Tensor  # 1 - beta1^t
    old: Tensor  # beta2·u
    new: Tensor  # |g| + eps
    u: Tensor  # the larger of the two


@dataclass(frozen=True, eq=False, init=False)
class Adamax(WeightDecay, ElementwiseOptimizer):
    """Adamax (Kingma and Ba 2015): Adam with an infinity norm in place of the second moment.

        g  = ±G + weight_decay·theta                    (minus when maximize)
        m' = beta1·m + (1 - beta1)·g
        u' = max(beta2·u, |g| + eps)
        theta' = theta - lr / (1 - beta1^t)·m' / u'

    Args:
        lr, eps, weight_decay: numbers, or any form that a meta-parameter takes.
        betas: the pair (beta1, beta2), likewise.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Where the maximum ties its derivative goes half to each, and |g| has slope 0 at g = 0: each is the mean of
    the one-sided derivatives. At G = 0 in the first step theta' is differentiable, and this is its derivative.

    Cost: state 2|theta|.
    Source: `torch.optim.Adamax`; proof in appendix_proofs/adamax.py.

    >>> import torch, gimli_core as gimli
    >>> adamax = gimli.optimizers.Adamax(lr=0.5, eps=0.25)
    >>> adamax.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # -lr / eps at G = 0
    tensor([-2.])
    """

    lr: Any = hyperparameter(2e-3)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.999, below=1.0)
    eps: Any = hyperparameter(1e-8)
    weight_decay: Any = hyperparameter(0.0)
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 2e-3,
        betas: Any = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        *,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), betas=("beta1", "beta2"))

    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> _Parts:
        g = self._descent(theta, G, h)
        m = torch.lerp(s["exp_avg"], g, (1 - h["beta1"]).to(g))
        old, new = s["exp_inf"] * h["beta2"], g.abs() + h["eps"]
        return _Parts(g, m, 1 - h["beta1"] ** t, old, new, torch.maximum(old, new))

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        _, m, c1, _, _, u = self._parts(theta, s, G, h, t)
        return torch.addcdiv(theta, m * -(h["lr"] / c1), u), {"exp_avg": m, "exp_inf": u}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, m, c1, old, new, u = self._parts(theta, s, G, h, t)
        beta1 = h["beta1"]
        rate = h["lr"] / c1
        B_u = B / u
        m_bar = S["exp_avg"] - rate * B_u
        u_bar = S["exp_inf"] + rate * B_u * (m / u)
        kept = (1 + torch.sign(old - new)) / 2
        old_bar, new_bar = u_bar * kept, u_bar * (1 - kept)
        A: Thunks = {
            "lr": lambda: -B_u * m / c1,
            "beta1": lambda: m_bar * (s["exp_avg"] - g) - B_u * m * (rate / c1 * t * beta1 ** (t - 1)),
            "beta2": lambda: old_bar * s["exp_inf"],
            "eps": lambda: new_bar,
        }
        V, B_j = self._decay_pullback(theta, h, B, (1 - beta1) * m_bar + torch.sign(g) * new_bar, A)
        return V, B_j, {"exp_avg": beta1 * m_bar, "exp_inf": h["beta2"] * old_bar}, A
