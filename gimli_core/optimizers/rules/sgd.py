"""Stochastic gradient descent with momentum, as in `torch.optim.SGD`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import ArgumentError
from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import as_numbers
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["SGD"]


@dataclass(frozen=True, eq=False)
class SGD(ElementwiseOptimizer):
    """SGD with momentum, dampening, Nesterov's look-ahead and weight decay.

        g  = ±G + weight_decay·theta                    (minus when maximize)
        b' = momentum·b + (1 - dampening)·g             (b' = g in the first step)
        d  = g + momentum·b'  if nesterov else  b'
        theta' = theta - lr·d

    Without momentum (the number 0 and not a meta-parameter) no buffer is kept and d = g.

    Args:
        lr, momentum, dampening, weight_decay: numbers, or any form that a meta-parameter takes.
        nesterov, maximize: switches, not differentiable.

    Raises:
        ArgumentError: a number out of range, or nesterov without momentum or with dampening.

    Cost: state |theta| with momentum, else none.
    Source: `torch.optim.SGD`; proofs in appendix_proofs/sgd.py, appendix_proofs/momentum.py and
    appendix_proofs/nesterov.py.

    >>> import torch, gimli_core as gimli
    >>> gimli.optimizers.SGD(lr=0.5).jacobians({"w": torch.ones(1)})["theta"]["G"]["w"]
    tensor([-0.5000])
    """

    lr: Any = hyperparameter(1e-3)
    momentum: Any = hyperparameter(0.0)
    dampening: Any = hyperparameter(0.0, low=float("-inf"))
    weight_decay: Any = hyperparameter(0.0)
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.uses("dampening") or not self.uses("momentum")):
            raise ArgumentError(
                f"SGD(nesterov=True): expected momentum > 0 and dampening = 0; got momentum={self.momentum!r}, "
                f"dampening={self.dampening!r}. Set momentum, and leave dampening at 0."
            )

    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.uses("momentum") else ()

    def _direction(
        self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        """(g, c, b', d), with c = 1 in the first step and 1 - dampening after it; None where it is the number 1."""
        g = -G if self.maximize else G
        if self.uses("weight_decay"):
            g = g + h["weight_decay"] * theta
        if not s:
            return g, None, g, g
        c = self._share_of_gradient(h["dampening"], t, g.dtype)
        b = s["momentum_buffer"] * h["momentum"] + (g if c is None else c * g)
        return g, c, b, (g + h["momentum"] * b if self.nesterov else b)

    @staticmethod
    def _share_of_gradient(dampening: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor | None:
        """c of `_direction`: to multiply every tensor by 1 takes four operations."""
        numbers, _ = as_numbers({"dampening": dampening}, t)
        if isinstance(numbers["dampening"], float) and numbers["dampening"] == 0.0:
            return None
        return torch.where(t > 1, 1 - dampening, 1.0).to(dtype)

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensors]:
        _, _, b, d = self._direction(theta, s, G, h, t)
        return theta - h["lr"] * d, ({"momentum_buffer": b} if s else {})

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, c, b, d = self._direction(theta, s, G, h, t)
        d_bar = -h["lr"] * B
        A: Thunks = {"lr": lambda: -B * d}
        if s:
            b_bar = S["momentum_buffer"] + (h["momentum"] * d_bar if self.nesterov else d_bar)
            g_bar = b_bar if c is None else c * b_bar
            if self.nesterov:
                g_bar = g_bar + d_bar
            A["momentum"] = lambda: b_bar * s["momentum_buffer"] + (d_bar * b if self.nesterov else 0)
            A["dampening"] = lambda: b_bar * g * -(t > 1).to(g.dtype)
            S = {"momentum_buffer": h["momentum"] * b_bar}
        else:
            g_bar = d_bar
        A["weight_decay"] = lambda: g_bar * theta
        V = -g_bar if self.maximize else g_bar
        B_j = B + h["weight_decay"] * g_bar if self.uses("weight_decay") else B
        return V, B_j, S, A
