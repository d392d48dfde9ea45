"""Adafactor, as in `torch.optim.Adafactor`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay
from gimli_core.optimizers.tensorwise import TensorwiseOptimizer

__all__ = ["Adafactor"]


class _Parts(NamedTuple):
    g: Tensor
    new: Tensors  # the state
    means: Tensors  # what the state moves towards: means of g²
    w: Tensor  # how far: t^beta2_decay
    eps1: Any
    c: Tensor  # the bounded mean of R', of a matrix
    v: Tensor  # the estimate of g² before it is bounded
    x: Tensor  # max(v, eps1²)
    u: Tensor  # g / sqrt(x)
    u_rms: Tensor
    denom: Tensor  # max(1, u_rms / d)
    rho: Tensor  # min(lr, 1 / sqrt(t))
    theta_rms: Tensor
    alpha: Tensor  # max(eps2, theta_rms)·rho


@dataclass(frozen=True, eq=False, init=False)
class Adafactor(WeightDecay, TensorwiseOptimizer):
    """Adafactor (Shazeer and Stern 2018), as torch.optim writes it: second moments of a matrix as row and column means.

        w      = t^beta2_decay,  rho = min(lr, 1/sqrt(t)),  alpha = max(eps2, rms(theta))·rho
        R'     = R + w·(row means of g² - R),  C' likewise;   v = R'C' / max(mean(R'), eps1)    of a matrix
        v'     = v + w·(g² - v)                                                                 of a vector
        u      = g / sqrt(max(v, eps1²))
        theta' = theta·(1 - lr·weight_decay) - alpha / max(1, rms(u) / d)·u

    g = ±G (minus when maximize). Tensors of more than two dimensions are stacks of matrices. Every maximum and
    minimum ties half and half.

    Args:
        lr: an upper bound of rho; may be given per element, as weight_decay may. The others act on a tensor as a whole.
        beta2_decay, d, weight_decay: numbers, or any form that a meta-parameter takes.
        eps: the pair (eps1, eps2); eps1 = None is the rounding unit of theta's dtype, and then constant.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range, a per-element value of what acts on a tensor as a whole.

    Cost: state rows + columns of a matrix, |theta| of a vector. V couples the elements of a tensor, at the cost of a
    few elementwise passes.
    Source: `torch.optim.Adafactor`; proof in appendix_proofs/adafactor.py.

    >>> import torch, gimli_core as gimli
    >>> rule = gimli.optimizers.Adafactor(lr=0.5)
    >>> theta = {"w": torch.ones(3, 2)}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in rule.hyperparameters().items()}}
    >>> state = rule.initial_state(theta, hyper)
    >>> state["row_var"]["w"].shape, state["col_var"]["w"].shape, state["variance"]
    (torch.Size([3, 1]), torch.Size([1, 2]), {})
    """

    lr: Any = hyperparameter(1e-2)
    beta2_decay: Any = hyperparameter(-0.8, low=float("-inf"), below=math.nextafter(0.0, 1.0))
    eps1: Any = hyperparameter(None)
    eps2: Any = hyperparameter(1e-3)
    d: Any = hyperparameter(1.0, low=1.0)
    weight_decay: Any = hyperparameter(0.0)
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 1e-2,
        beta2_decay: Any = -0.8,
        eps: Any = (None, 1e-3),
        d: Any = 1.0,
        weight_decay: Any = 0.0,
        *,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), eps=("eps1", "eps2"))

    def hyperparameters(self) -> dict[str, Any]:
        # eps1 = None depends on the dtype; the number that stands for it here is not used.
        return {name: 0.0 if value is None else value for name, value in super().hyperparameters().items()}

    def uses(self, name: str) -> bool:
        return getattr(self, name) is not None and super().uses(name)

    def whole_tensor(self) -> tuple[str, ...]:
        return ("beta2_decay", "eps1", "eps2", "d")

    @property
    def decoupled(self) -> bool:
        return True

    def slots(self) -> tuple[str, ...]:
        return ("row_var", "col_var", "variance")

    def _initial(self, slot: str, theta: Tensor, h: Tensors) -> Tensor | None:
        factored = theta.ndim > 1 and theta.numel() > 0
        if slot == "variance":
            return None if factored else torch.zeros_like(theta)
        if not factored:
            return None
        return torch.zeros_like(theta[..., :1] if slot == "row_var" else theta[..., :1, :])

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> _Parts:
        g = self._descent(theta, G, h)
        eps1 = torch.finfo(theta.dtype).eps if self.eps1 is None else h["eps1"].to(g)
        w = t ** h["beta2_decay"]
        g2 = g * g
        if "variance" in s:
            means = {"variance": g2}
        else:
            means = {"row_var": g2.mean(-1, keepdim=True), "col_var": g2.mean(-2, keepdim=True)}
        new = {slot: torch.lerp(s[slot], mean, w.to(g)) for slot, mean in means.items()}
        c = torch.ones_like(w)
        if "variance" in s:
            v = new["variance"]
        else:
            c = _at_least(new["row_var"].mean(-2, keepdim=True), eps1)
            v = new["row_var"] @ new["col_var"] / c
        x = _at_least(v, eps1 * eps1)
        u = g * x.rsqrt()
        rho = torch.minimum(h["lr"], 1 / t.sqrt().to(h["lr"]))
        u_rms, theta_rms = _rms(u), _rms(theta)
        alpha = _at_least(theta_rms, h["eps2"].to(g)) * rho
        return _Parts(g, new, means, w, eps1, c, v, x, u, u_rms, _at_least(u_rms / h["d"], 1.0), rho, theta_rms, alpha)

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        p = self._parts(theta, s, G, h, t)
        return self._decayed(theta, h) - p.alpha / p.denom * p.u, p.new

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        p = self._parts(theta, s, G, h, t)
        n, d, eps1 = max(theta.numel(), 1), h["d"], p.eps1
        # theta' = … - rate·u, rate = alpha / denom
        rate_bar = -B * p.u
        denom_bar = -(rate_bar * p.alpha).sum() / p.denom**2
        long = _above(p.u_rms / d, 1.0)
        along = torch.where(p.u_rms > 0, denom_bar * long / (d * n * torch.where(p.u_rms > 0, p.u_rms, 1.0)), 0.0)
        u_bar = -p.alpha / p.denom * B + along * p.u
        # u = g / sqrt(x), x = max(v, eps1²)
        x_bar = -0.5 * u_bar * p.u / p.x
        kept = _above(p.v, eps1 * eps1)
        eps1_bar = (x_bar * (1 - kept)).sum() * 2 * eps1
        v_bar = x_bar * kept
        new_bar = {slot: S[slot] for slot in s}
        if "variance" in s:
            new_bar["variance"] = new_bar["variance"] + v_bar
        else:
            row, col = p.new["row_var"], p.new["col_var"]
            c_bar = -(v_bar * p.v / p.c).sum((-2, -1), keepdim=True)
            kept_c = _above(row.mean(-2, keepdim=True), eps1)
            eps1_bar = eps1_bar + (c_bar * (1 - kept_c)).sum()
            v_bar = v_bar / p.c
            new_bar["row_var"] = new_bar["row_var"] + v_bar @ col.mT + c_bar * kept_c / row.shape[-2]
            new_bar["col_var"] = new_bar["col_var"] + row.mT @ v_bar
        means_bar = {slot: p.w * bar for slot, bar in new_bar.items()}
        counts = {"variance": 1, "row_var": theta.shape[-1], "col_var": theta.shape[-2] if theta.ndim > 1 else 1}
        g_bar = u_bar * p.x.rsqrt() + 2 * p.g * sum(bar / counts[slot] for slot, bar in means_bar.items())
        # rate's other factor
        alpha_bar = rate_bar / p.denom
        large = _above(p.theta_rms, h["eps2"].to(p.g))
        rms_bar = (alpha_bar * p.rho).sum()
        size = torch.where(p.theta_rms > 0, p.theta_rms, 1.0)

        def by_w() -> Tensor:
            return torch.stack([(bar * (p.means[slot] - s[slot])).sum() for slot, bar in new_bar.items()]).sum()

        A: Thunks = {
            "lr": lambda: (
                alpha_bar * _at_least(p.theta_rms, h["eps2"].to(p.g)) * _above(1 / t.sqrt().to(h["lr"]), h["lr"])
            ),
            "beta2_decay": lambda: by_w() * p.w * t.log(),
            "eps1": lambda: eps1_bar,
            "eps2": lambda: rms_bar * (1 - large),
            "d": lambda: -denom_bar * long * p.u_rms / d**2,
        }
        V, B_j = self._decay_pullback(theta, h, B, g_bar, A)
        B_j = B_j + rms_bar * large / (n * size) * theta
        return V, B_j, {slot: (1 - p.w) * bar for slot, bar in new_bar.items()}, A


def _rms(x: Tensor) -> Tensor:
    """Root of the mean square; autograd takes its derivative at 0 to be 0."""
    rms: Tensor = torch.linalg.vector_norm(x) / max(x.numel(), 1) ** 0.5
    return rms


def _at_least(x: Tensor, bound: Any) -> Tensor:
    return torch.maximum(x, torch.as_tensor(bound).to(x))


def _above(x: Tensor, bound: Any) -> Tensor:
    """d max(x, bound) / dx: 1 above the bound, 0 below, 1/2 on it."""
    return (1 + torch.sign(x - bound)) / 2
