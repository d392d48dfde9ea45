"""SparseAdam's dense equivalent: what `torch.optim.SparseAdam` does, told by zeros instead of indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import moments, moments_pullback
from gimli_core.optimizers.rules.singular import sqrt_slope
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["SparseAdam"]


class _Parts(NamedTuple):
    g: Tensor
    touched: Tensor
    m: Tensor
    v: Tensor
    c1: Tensor  # bias corrections 1 - beta^t
    c2: Tensor
    root: Tensor  # sqrt(v')
    d: Tensor  # root + eps


@dataclass(frozen=True, eq=False, init=False)
class SparseAdam(ElementwiseOptimizer):
    """Adam that leaves an element and its moments alone in every step in which its gradient is exactly 0.

        g  = ±G                                         (minus when maximize)
        m', v' as in `Adam`
        theta' = theta - lr·sqrt(1 - beta2^t) / (1 - beta1^t)·m' / (sqrt(v') + eps)      where g ≠ 0
        theta', m', v' = theta, m, v                                                     where g = 0

    t counts every step. G is dense here; an embedding's unused rows are its zeros, as they are what a sparse
    gradient leaves out.

    At g = 0 the update jumps where m ≠ 0: there the derivative of "left alone" is returned. Where m = 0 it is
    differentiable and its derivative is returned (v' jumps where v ≠ 0, likewise).

    Args:
        lr, eps: numbers, or any form that a meta-parameter takes.
        betas: the pair (beta1, beta2), likewise.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state 2|theta|.
    Source: `torch.optim.SparseAdam`; proof in appendix_proofs/sparse_adam.py, NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> rule = gimli.optimizers.SparseAdam(lr=0.5)
    >>> theta, G = {"w": torch.ones(2)}, {"w": torch.tensor([0.0, 1.0])}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in rule.hyperparameters().items()}}
    >>> rule.step(theta, rule.initial_state(theta, hyper), G, hyper)[0]["w"]
    tensor([1.0000, 0.5000])
    """

    lr: Any = hyperparameter(1e-3)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.999, below=1.0)
    eps: Any = hyperparameter(1e-8)
    maximize: bool = False

    def __init__(
        self, lr: Any = 1e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8, maximize: bool = False, *, groups: Any = None
    ) -> None:
        self._assign(locals(), betas=("beta1", "beta2"))

    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> _Parts:
        g = -G if self.maximize else G
        m, v = moments(s, g, h)
        root = v.sqrt()
        return _Parts(g, g != 0, m, v, 1 - h["beta1"] ** t, 1 - h["beta2"] ** t, root, root + h["eps"])

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        _, touched, m, v, c1, c2, _, d = self._parts(theta, s, G, h, t)
        new = {"exp_avg": torch.where(touched, m, s["exp_avg"]), "exp_avg_sq": torch.where(touched, v, s["exp_avg_sq"])}
        return torch.where(touched, theta - h["lr"] * c2.sqrt() / c1 * (m / d), theta), new

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, touched, m, _, c1, c2, root, d = self._parts(theta, s, G, h, t)
        beta1, beta2 = h["beta1"], h["beta2"]
        # B_on is B where the element moves, and 0 where it is left alone.
        B_on, m_on, v_on = (torch.where(touched, x, 0.0) for x in (B, S["exp_avg"], S["exp_avg_sq"]))
        rate = h["lr"] * c2.sqrt() / c1
        u = m / d
        d_bar = rate * B_on * u / d
        moved = moments_pullback(s, g, h, m_on - rate * B_on / d, v_on + d_bar * sqrt_slope(root))
        smooth = (g == 0) & (s["exp_avg"] == 0)  # theta' and m' are continuous in g there
        at_zero = (1 - beta1) * (S["exp_avg"] - rate * B / d)
        left = {slot: torch.where(touched, moved.S[slot], S[slot]) for slot in self.slots()}
        A: Thunks = {
            "lr": lambda: -B_on * u * c2.sqrt() / c1,
            "beta1": lambda: torch.where(touched, moved.beta1 - B_on * u * (rate / c1 * t * beta1 ** (t - 1)), 0.0),
            "beta2": lambda: torch.where(
                touched, moved.beta2 + B_on * u * (rate * t * beta2 ** (t - 1) / (2 * c2)), 0.0
            ),
            "eps": lambda: d_bar,
        }
        g_bar = torch.where(touched, moved.g, torch.where(smooth, at_zero, 0.0))
        return -g_bar if self.maximize else g_bar, B, left, A
