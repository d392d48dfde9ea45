"""NAdam, as in `torch.optim.NAdam`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import CorrectedRoot, WeightDecay, corrected_root, moments, moments_pullback
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer, reduce_like

__all__ = ["NAdam"]


class _Parts(NamedTuple):
    g: Tensor
    m: Tensor
    v: Tensor
    c2: Tensor  # 1 - beta2^t
    root: CorrectedRoot  # of v' / c2
    d: Tensor  # root + eps
    mu: Tensor  # mu_t
    mu_next: Tensor  # mu_{t+1}
    P: Tensor  # mu_1 … mu_t


@dataclass(frozen=True, eq=False, init=False)
class NAdam(WeightDecay, ElementwiseOptimizer):
    """NAdam (Dozat 2016): Adam with Nesterov momentum, whose momentum grows over the steps.

        mu_t   = beta1·(1 - 0.96^(t·momentum_decay) / 2),   P' = P·mu_t
        d      = sqrt(v' / (1 - beta2^t) + eps_root) + eps  with g, m', v' as in `Adam`
        theta' = theta - lr·(1 - mu_t) / (1 - P')·g / d - lr·mu_{t+1} / (1 - P'·mu_{t+1})·m' / d

    Args:
        lr, eps, weight_decay, momentum_decay, eps_root: numbers, or any form that a meta-parameter takes.
        betas: the pair (beta1, beta2), likewise.
        decoupled_weight_decay: decay theta by the factor 1 - lr·weight_decay, as AdamW does.
        maximize: ascend. Both are switches, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state 2|theta|, and the product P: one number, or |theta| for per-element beta1 or momentum_decay.
    Source: `torch.optim.NAdam` (which keeps P in torch's default dtype; here it is float64).
    Proof in appendix_proofs/nadam.py, NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> nadam = gimli.optimizers.NAdam(lr=0.5, eps=0.25, momentum_decay=0.0)
    >>> nadam.jacobians({"w": torch.zeros(1)})["exp_avg"]["G"]["w"]   # 1 - beta1
    tensor([0.1000])
    """

    lr: Any = hyperparameter(2e-3)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.999, below=1.0)
    eps: Any = hyperparameter(1e-8)
    weight_decay: Any = hyperparameter(0.0)
    momentum_decay: Any = hyperparameter(4e-3)
    eps_root: Any = hyperparameter(0.0)
    decoupled_weight_decay: bool = False
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 2e-3,
        betas: Any = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        momentum_decay: Any = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        eps_root: Any = 0.0,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), betas=("beta1", "beta2"))

    @property
    def decoupled(self) -> bool:
        return self.decoupled_weight_decay

    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "mu_product")

    def _initial(self, slot: str, theta: Tensor, h: Tensors) -> Tensor:
        if slot == "mu_product":
            return torch.ones_like(h["beta1"] + h["momentum_decay"])
        return torch.zeros_like(theta)

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> _Parts:
        g = self._descent(theta, G, h)
        m, v = moments(s, g, h)
        c2 = 1 - h["beta2"] ** t
        root = corrected_root(self, v, c2, h)
        mu = h["beta1"] * (1 - 0.5 * 0.96 ** (t * h["momentum_decay"]))
        mu_next = h["beta1"] * (1 - 0.5 * 0.96 ** ((t + 1) * h["momentum_decay"]))
        return _Parts(g, m, v, c2, root, root.rho + h["eps"], mu, mu_next, s["mu_product"] * mu)

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        g, m, v, _, _, d, mu, mu_next, P = self._parts(theta, s, G, h, t)
        theta = torch.addcdiv(self._decayed(theta, h), g * -(h["lr"] * (1 - mu) / (1 - P)), d)
        theta = torch.addcdiv(theta, m * -(h["lr"] * mu_next / (1 - P * mu_next)), d)
        return theta, {"exp_avg": m, "exp_avg_sq": v, "mu_product": P}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, m, _, c2, root, d, mu, mu_next, P = self._parts(theta, s, G, h, t)
        lr, beta1, beta2 = h["lr"], h["beta1"], h["beta2"]
        by_g = (1 - mu) / (1 - P)  # theta' = theta - lr·(by_g·g + by_m·m') / d
        by_m = mu_next / (1 - P * mu_next)
        B_d = B / d
        d_bar = lr * B_d * (by_g * g + by_m * m) / d
        moved = moments_pullback(s, g, h, S["exp_avg"] - lr * by_m * B_d, S["exp_avg_sq"] + d_bar * root.slope / c2)
        # From here to S_mu everything has mu's own shape, which is one number unless a value is per element.
        by_g_bar, by_m_bar = reduce_like(-lr * B_d * g, P), reduce_like(-lr * B_d * m, P)
        P_bar = S["mu_product"] + by_g_bar * by_g / (1 - P) + by_m_bar * by_m**2
        mu_bar = P_bar * s["mu_product"] - by_g_bar / (1 - P)
        mu_next_bar = by_m_bar / (1 - P * mu_next) ** 2

        def grows(step: Tensor) -> Tensor:
            return 1 - 0.5 * 0.96 ** (step * h["momentum_decay"])

        def grows_slope(step: Tensor) -> Tensor:  # d grows / d momentum_decay
            return -0.5 * math.log(0.96) * step * 0.96 ** (step * h["momentum_decay"])

        A: Thunks = {
            "lr": lambda: -B_d * (by_g * g + by_m * m),
            "beta1": lambda: (
                reduce_like(moved.beta1, beta1) + reduce_like(mu_bar * grows(t) + mu_next_bar * grows(t + 1), beta1)
            ),
            "beta2": lambda: moved.beta2 + d_bar * root.by_c2 * (t * beta2 ** (t - 1) / c2),
            "eps": lambda: d_bar,
            "momentum_decay": lambda: beta1 * (mu_bar * grows_slope(t) + mu_next_bar * grows_slope(t + 1)),
        }
        if self.uses("eps_root"):
            A["eps_root"] = lambda: d_bar * root.slope
        V, B_j = self._decay_pullback(theta, h, B, moved.g - lr * by_g * B_d, A)
        return V, B_j, {**moved.S, "mu_product": P_bar * mu}, A
