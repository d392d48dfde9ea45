"""LAMB, as its paper writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import CorrectedRoot, WeightDecay, corrected_root, moments, moments_pullback
from gimli_core.optimizers.tensorwise import TensorwiseOptimizer

__all__ = ["LAMB"]


class _Parts(NamedTuple):
    g: Tensor
    m: Tensor
    v: Tensor
    c1: Tensor  # bias corrections
    c2: Tensor
    root: CorrectedRoot  # of v' / c2
    d: Tensor  # root + eps
    u: Tensor  # the update before it is scaled
    theta_norm: Tensor
    u_norm: Tensor  # 1 where it is not used
    on: Tensor  # both norms are positive
    ratio: Tensor


@dataclass(frozen=True, eq=False, init=False)
class LAMB(WeightDecay, TensorwiseOptimizer):
    """LAMB (You et al. 2020): Adam whose step in each tensor is as long as the tensor's own norm says.

        u      = m'/c1 / (sqrt(v'/c2 + eps_root) + eps) + weight_decay·theta     with g = ±G, m', v' as in `Adam`
        ratio  = min(|theta|, norm_limit) / |u|                           1 where a norm is 0
        theta' = theta - lr·ratio·u

    c1 = 1 - beta1^t and c2 = 1 - beta2^t, or 1 without bias correction. The norms run over one tensor, so the
    Jacobian couples its elements: V has a term along u. Where u = 0 as a whole theta' jumps (a unit vector has no
    limit there), and the derivative of the branch ratio = 1 is returned.

    Args:
        lr, eps, weight_decay, eps_root: numbers, or any form that a meta-parameter takes.
        betas: the pair (beta1, beta2), likewise.
        norm_limit: the upper bound of the paper's φ, None for none. bias_correction, maximize: switches.
            Not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state 2|theta|.
    Source: You et al. 2020, Algorithm 2; proof in appendix_proofs/lamb.py, NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> lamb = gimli.optimizers.LAMB(lr=0.5)
    >>> theta, G = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.ones(2)}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in lamb.hyperparameters().items()}}
    >>> moved = lamb.step(theta, lamb.initial_state(theta, hyper), G, hyper)[0]["w"]
    >>> torch.linalg.vector_norm(moved - theta["w"])       # lr·|theta|
    tensor(2.5000)
    """

    lr: Any = hyperparameter(1e-3)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.999, below=1.0)
    eps: Any = hyperparameter(1e-6)
    weight_decay: Any = hyperparameter(0.0)
    eps_root: Any = hyperparameter(0.0)
    norm_limit: float | None = None
    bias_correction: bool = True
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: Any = 1e-6,
        weight_decay: Any = 0.0,
        norm_limit: float | None = None,
        *,
        eps_root: Any = 0.0,
        bias_correction: bool = True,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), betas=("beta1", "beta2"))

    @property
    def decoupled(self) -> bool:
        return True

    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> _Parts:
        g = self._descent(theta, G, h)
        m, v = moments(s, g, h)
        corrected = float(self.bias_correction)
        c1, c2 = 1 - corrected * h["beta1"] ** t, 1 - corrected * h["beta2"] ** t
        root = corrected_root(self, v, c2, h)
        d = root.rho + h["eps"]
        u = m / c1 / d
        if self.uses("weight_decay"):
            u = u + h["weight_decay"] * theta
        theta_norm, u_norm = _norm(theta), _norm(u)
        on = (theta_norm > 0) & (u_norm > 0)
        u_norm = torch.where(on, u_norm, 1.0)
        long = theta_norm if self.norm_limit is None else theta_norm.clamp(max=self.norm_limit)
        return _Parts(g, m, v, c1, c2, root, d, u, theta_norm, u_norm, on, torch.where(on, long / u_norm, 1.0))

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        p = self._parts(theta, s, G, h, t)
        return theta - h["lr"] * p.ratio * p.u, {"exp_avg": p.m, "exp_avg_sq": p.v}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        p = self._parts(theta, s, G, h, t)
        lr, beta1, beta2 = h["lr"], h["beta1"], h["beta2"]
        ratio_bar = torch.where(p.on, (-lr * B * p.u).sum(), 0.0)
        u_bar = -lr * B * p.ratio - ratio_bar * p.ratio / p.u_norm**2 * p.u
        short = 1.0 if self.norm_limit is None else (1 + torch.sign(self.norm_limit - p.theta_norm)) / 2
        B_j = B + ratio_bar * short / (p.u_norm * torch.where(p.on, p.theta_norm, 1.0)) * theta
        d_bar = -u_bar * (p.m / p.c1 / p.d) / p.d
        moved = moments_pullback(
            s, p.g, h, S["exp_avg"] + u_bar / (p.c1 * p.d), S["exp_avg_sq"] + d_bar * p.root.slope / p.c2
        )
        corrected = float(self.bias_correction)
        A: Thunks = {
            "lr": lambda: -B * p.ratio * p.u,
            "beta1": lambda: moved.beta1 + u_bar * p.m / p.d * (corrected * t * beta1 ** (t - 1) / p.c1**2),
            "beta2": lambda: moved.beta2 + d_bar * p.root.by_c2 * (corrected * t * beta2 ** (t - 1) / p.c2),
            "eps": lambda: d_bar,
            "weight_decay": lambda: u_bar * theta,
        }
        if self.uses("eps_root"):
            A["eps_root"] = lambda: d_bar * p.root.slope
        if self.uses("weight_decay"):
            B_j = B_j + h["weight_decay"] * u_bar
        return (-moved.g if self.maximize else moved.g), B_j, moved.S, A


def _norm(x: Tensor) -> Tensor:
    """|x|, whose derivative autograd takes to be 0 at x = 0."""
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm
