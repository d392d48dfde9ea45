"""RAdam, as in `torch.optim.RAdam`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay, moments, moments_pullback
from gimli_core.optimizers.rules.singular import sqrt_slope
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["RAdam"]


class _Parts(NamedTuple):
    g: Tensor
    m: Tensor
    v: Tensor
    c1: Tensor  # bias corrections 1 - beta^t
    c2: Tensor
    on: Tensor  # whether the variance is tractable: rho > 5
    rho: Tensor  # rho_t and rho_inf, with harmless values where `on` is false
    rho_inf: Tensor
    root: Tensor  # sqrt(v')
    d: Tensor  # root + eps
    scale: Tensor  # what multiplies lr·m' / c1


@dataclass(frozen=True, eq=False, init=False)
class RAdam(WeightDecay, ElementwiseOptimizer):
    """RAdam (Liu et al. 2020): Adam that waits until its second moment can be trusted.

        rho_inf = 2 / (1 - beta2) - 1,   rho = rho_inf - 2·t·beta2^t / (1 - beta2^t)
        r       = sqrt((rho - 4)(rho - 2)·rho_inf / ((rho_inf - 4)(rho_inf - 2)·rho))
        scale   = r·sqrt(1 - beta2^t) / (sqrt(v') + eps)  if rho > 5  else  1
        theta'  = theta - lr / (1 - beta1^t)·m'·scale               with g, m', v' as in `Adam`

    Args:
        lr, eps, weight_decay: numbers, or any form that a meta-parameter takes.
        betas: the pair (beta1, beta2), likewise.
        decoupled_weight_decay: decay theta by the factor 1 - lr·weight_decay, as AdamW does.
        maximize: ascend. Both are switches, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    The condition rho > 5 depends on t and beta2 alone. The update jumps where a change of beta2 moves rho_t
    across 5 for some t; there no derivative exists, and elsewhere that of the branch taken is exact.

    Cost: state 2|theta|.
    Source: `torch.optim.RAdam`; proof in appendix_proofs/radam.py, NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> radam = gimli.optimizers.RAdam(lr=0.5)
    >>> radam.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # the first steps are momentum SGD
    tensor([-0.5000])
    """

    lr: Any = hyperparameter(1e-3)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.999, below=1.0)
    eps: Any = hyperparameter(1e-8)
    weight_decay: Any = hyperparameter(0.0)
    decoupled_weight_decay: bool = False
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), betas=("beta1", "beta2"))

    @property
    def decoupled(self) -> bool:
        return self.decoupled_weight_decay

    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> _Parts:
        g = self._descent(theta, G, h)
        m, v = moments(s, g, h)
        c1, c2 = 1 - h["beta1"] ** t, 1 - h["beta2"] ** t
        rho_inf = 2 / (1 - h["beta2"]) - 1
        rho = rho_inf - 2 * t * h["beta2"] ** t / c2
        on = rho > 5
        # Where it is off, r could be 0/0: 8 and 6 keep it finite there, and unused.
        rho_inf, rho = torch.where(on, rho_inf, 8.0), torch.where(on, rho, 6.0)
        r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)).sqrt()
        root = v.sqrt()
        d = root + h["eps"]
        return _Parts(g, m, v, c1, c2, on, rho, rho_inf, root, d, torch.where(on, c2.sqrt() / d * r, 1.0))

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        p = self._parts(theta, s, G, h, t)
        theta = self._decayed(theta, h) - p.m / p.c1 * h["lr"] * p.scale
        return theta, {"exp_avg": p.m, "exp_avg_sq": p.v}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, m, _, c1, c2, on, rho, rho_inf, root, d, scale = self._parts(theta, s, G, h, t)
        beta1, beta2 = h["beta1"], h["beta2"]
        rate = h["lr"] / c1
        scale_bar = -rate * B * m
        d_bar = torch.where(on, -scale_bar * scale / d, 0.0)
        moved = moments_pullback(s, g, h, S["exp_avg"] - rate * B * scale, S["exp_avg_sq"] + d_bar * sqrt_slope(root))

        def scale_by_beta2() -> Tensor:
            """d log(r sqrt(c2)) / d beta2."""
            c2_slope = -t * beta2 ** (t - 1)
            rho_inf_slope = 2 / (1 - beta2) ** 2
            rho_slope = rho_inf_slope + 2 * t * c2_slope / c2**2
            by_rho = 1 / (rho - 4) + 1 / (rho - 2) - 1 / rho
            by_inf = 1 / rho_inf - 1 / (rho_inf - 4) - 1 / (rho_inf - 2)
            return (by_rho * rho_slope + by_inf * rho_inf_slope + c2_slope / c2) / 2

        A: Thunks = {
            "lr": lambda: -B * m * scale / c1,
            "beta1": lambda: moved.beta1 + scale_bar * scale * (t * beta1 ** (t - 1) / c1),
            "beta2": lambda: moved.beta2 + torch.where(on, scale_bar * scale * scale_by_beta2(), 0.0),
            "eps": lambda: d_bar,
        }
        V, B_j = self._decay_pullback(theta, h, B, moved.g, A)
        return V, B_j, moved.S, A
