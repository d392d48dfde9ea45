"""RMSprop, as in `torch.optim.RMSprop`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay
from gimli_core.optimizers.rules.singular import sqrt_slope
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["RMSprop"]


class _Parts(NamedTuple):
    g: Tensor
    root: Tensor  # sqrt(x)
    d: Tensor  # root + eps
    q: Tensor  # g / d
    new: Tensors  # v', and a', b' where they are kept


@dataclass(frozen=True, eq=False)
class RMSprop(WeightDecay, ElementwiseOptimizer):
    """RMSprop (Tieleman and Hinton 2012; centered: Graves 2013), with momentum.

        g  = ±G + weight_decay·theta                    (minus when maximize)
        v' = alpha·v + (1 - alpha)·g²
        a' = alpha·a + (1 - alpha)·g                    if centered
        x  = v' - a'²  if centered  else  v'
        b' = momentum·b + g / (sqrt(x) + eps)
        theta' = theta - lr·b'

    Without momentum (the number 0 and not a meta-parameter) no buffer is kept, and b' is its last term.

    Args:
        lr, alpha, eps, weight_decay, momentum: numbers, or any form that a meta-parameter takes.
        centered, maximize: switches, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Where rounding makes v' - a'² negative, x is 0 (`torch.optim` gives NaN there).

    Cost: state |theta|, and |theta| more each for centered and momentum.
    Source: `torch.optim.RMSprop`; proof in appendix_proofs/rmsprop.py, NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> rmsprop = gimli.optimizers.RMSprop(lr=0.5, eps=0.25)
    >>> rmsprop.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # -lr / eps at G = 0
    tensor([-2.])
    """

    lr: Any = hyperparameter(1e-2)
    alpha: Any = hyperparameter(0.99)
    eps: Any = hyperparameter(1e-8)
    weight_decay: Any = hyperparameter(0.0)
    momentum: Any = hyperparameter(0.0)
    centered: bool = False
    maximize: bool = False

    def slots(self) -> tuple[str, ...]:
        centered = ("grad_avg",) if self.centered else ()
        return ("square_avg", *centered, *(("momentum_buffer",) if self.uses("momentum") else ()))

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors) -> _Parts:
        g = self._descent(theta, G, h)
        x = torch.addcmul(s["square_avg"] * h["alpha"], (1 - h["alpha"]) * g, g)
        new = {"square_avg": x}
        if self.centered:
            a = new["grad_avg"] = torch.lerp(s["grad_avg"], g, (1 - h["alpha"]).to(g))
            x = torch.addcmul(x, a, a, value=-1)
            x = torch.where(x > 0, x, 0.0)
        root = x.sqrt()
        d = root + h["eps"]
        q = g / d
        if "momentum_buffer" in s:
            new["momentum_buffer"] = s["momentum_buffer"] * h["momentum"] + q
        return _Parts(g, root, d, q, new)

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        p = self._parts(theta, s, G, h)
        return theta - h["lr"] * p.new.get("momentum_buffer", p.q), p.new

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, root, d, q, new = self._parts(theta, s, G, h)
        alpha = h["alpha"]
        A: Thunks = {"lr": lambda: -B * new.get("momentum_buffer", q)}
        S_j: Tensors = {}
        q_bar = -h["lr"] * B
        if "momentum_buffer" in s:
            q_bar = q_bar + S["momentum_buffer"]
            A["momentum"] = lambda: q_bar * s["momentum_buffer"]
            S_j["momentum_buffer"] = h["momentum"] * q_bar
        d_bar = -q_bar * q / d
        x_bar = d_bar * sqrt_slope(root)
        v_bar = S["square_avg"] + x_bar
        g_bar = q_bar / d + 2 * (1 - alpha) * g * v_bar
        by_alpha = [lambda: v_bar * (s["square_avg"] - g * g)]
        if self.centered:
            a_bar = S["grad_avg"] - 2 * new["grad_avg"] * x_bar
            g_bar = g_bar + (1 - alpha) * a_bar
            S_j["grad_avg"] = alpha * a_bar
            by_alpha.append(lambda: a_bar * (s["grad_avg"] - g))
        S_j["square_avg"] = alpha * v_bar
        A["alpha"] = lambda: sum((part() for part in by_alpha[1:]), start=by_alpha[0]())
        A["eps"] = lambda: d_bar
        V, B_j = self._decay_pullback(theta, h, B, g_bar, A)
        return V, B_j, S_j, A
