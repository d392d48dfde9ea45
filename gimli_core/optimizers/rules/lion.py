"""Lion, as its paper's program writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["Lion"]


@dataclass(frozen=True, eq=False, init=False)
class Lion(WeightDecay, ElementwiseOptimizer):
    """Lion (Chen et al. 2023): the sign of an interpolated momentum, with decoupled weight decay.

        c      = beta1·m + (1 - beta1)·g,   g = ±G             (minus when maximize)
        theta' = theta·(1 - lr·weight_decay) - lr·sign(c)
        m'     = beta2·m + (1 - beta2)·g

    The sign has derivative 0 wherever it has one, so nothing flows back through the gradient: A_loss has its
    explicit part only, beta1 and beta2 have derivative 0, and those of lr and weight_decay are exact.

    Args:
        lr, weight_decay: numbers, or any form that a meta-parameter takes.
        betas: the pair (beta1, beta2), likewise.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state |theta|.
    Source: Chen et al. 2023, Algorithm 2; proof in appendix_proofs/lion.py.

    >>> import torch, gimli_core as gimli
    >>> lion = gimli.optimizers.Lion(lr=0.5, weight_decay=0.5)
    >>> lion.jacobians({"w": torch.ones(1)})["theta"]["theta"]["w"]   # 1 - lr·weight_decay
    tensor([0.7500])
    """

    lr: Any = hyperparameter(1e-4)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.99, below=1.0)
    weight_decay: Any = hyperparameter(0.0)
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 1e-4,
        betas: Any = (0.9, 0.99),
        weight_decay: Any = 0.0,
        *,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), betas=("beta1", "beta2"))

    @property
    def decoupled(self) -> bool:
        return True

    def slots(self) -> tuple[str, ...]:
        return ("exp_avg",)

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors) -> tuple[Tensor, Tensor]:
        """(g, sign(c))."""
        g = self._descent(theta, G, h)
        return g, torch.lerp(s["exp_avg"], g, (1 - h["beta1"]).to(g)).sign()

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        g, sign = self._parts(theta, s, G, h)
        m = torch.lerp(s["exp_avg"], g, (1 - h["beta2"]).to(g))
        return self._decayed(theta, h) - h["lr"] * sign, {"exp_avg": m}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, sign = self._parts(theta, s, G, h)
        m_bar = S["exp_avg"]
        A: Thunks = {
            "lr": lambda: -B * sign,
            "beta1": lambda: torch.zeros_like(B),
            "beta2": lambda: m_bar * (s["exp_avg"] - g),
        }
        V, B_j = self._decay_pullback(theta, h, B, (1 - h["beta2"]) * m_bar, A)
        return V, B_j, {"exp_avg": h["beta2"] * m_bar}, A
