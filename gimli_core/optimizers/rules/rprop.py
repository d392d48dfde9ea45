"""Resilient propagation, as in `torch.optim.Rprop`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer, reduce_like

__all__ = ["Rprop"]


class _Parts(NamedTuple):
    sign: Tensor  # of G times the last G
    factor: Tensor  # etaplus, etaminus or 1
    raw: Tensor  # step_size·factor, before the bounds
    size: Tensor  # step_size'
    g: Tensor  # G, or 0 where its sign has changed


@dataclass(frozen=True, eq=False, init=False)
class Rprop(ElementwiseOptimizer):
    """Rprop (Riedmiller and Braun 1993): steps whose size depends on the signs of gradients alone.

        σ          = sign(±G·prev)                            (minus when maximize)
        step_size' = clamp(step_size·(etaplus | 1 | etaminus for σ > 0 | = 0 | < 0), min, max),   step_size_0 = lr
        g          = 0 if σ < 0 else ±G
        theta'     = theta - sign(g)·step_size',   prev' = g

    The update is piecewise constant in G. Its derivative is 0 wherever it exists, so nothing flows back
    through the gradient: A_loss has its explicit part only, and B_0 = B_J. The derivatives with respect to lr,
    etas and step_sizes are exact. At a bound that is met exactly each side gets half.

    Args:
        lr: the first step size. etas: the pair (etaminus, etaplus). step_sizes: the pair
            (step_size_min, step_size_max). Numbers, or any form that a meta-parameter takes.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state 2|theta|.
    Source: `torch.optim.Rprop`; proof in appendix_proofs/rprop.py.

    >>> import torch, gimli_core as gimli
    >>> rprop = gimli.optimizers.Rprop(lr=0.5)
    >>> rprop.jacobians({"w": torch.ones(1)}, G={"w": torch.ones(1)})["theta"]["step_size"]["w"]
    tensor([-1.])
    """

    lr: Any = hyperparameter(1e-2)
    etaminus: Any = hyperparameter(0.5, below=1.0)
    etaplus: Any = hyperparameter(1.2, low=1.0)
    step_size_min: Any = hyperparameter(1e-6)
    step_size_max: Any = hyperparameter(50.0)
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 1e-2,
        etas: Any = (0.5, 1.2),
        step_sizes: Any = (1e-6, 50.0),
        *,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), etas=("etaminus", "etaplus"), step_sizes=("step_size_min", "step_size_max"))

    def slots(self) -> tuple[str, ...]:
        return ("prev", "step_size")

    def _initial(self, slot: str, theta: Tensor, h: Tensors) -> Tensor:
        return h["lr"].to(theta).expand_as(theta).clone() if slot == "step_size" else torch.zeros_like(theta)

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        if "lr" not in wanted:
            return {}
        return {k: {"lr": reduce_like(S_k, hyper[k]["lr"])} for k, S_k in S_0["step_size"].items()}

    def _parts(self, s: Tensors, G: Tensor, h: Tensors) -> _Parts:
        g = -G if self.maximize else G
        sign = (g * s["prev"]).sign()
        up, down = h["etaplus"].to(g), h["etaminus"].to(g)
        factor = torch.where(sign > 0, up, torch.where(sign < 0, down, 1.0))
        raw = s["step_size"] * factor
        size = torch.minimum(torch.maximum(raw, h["step_size_min"].to(g)), h["step_size_max"].to(g))
        return _Parts(sign, factor, raw, size, torch.where(sign < 0, 0.0, g))

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        p = self._parts(s, G, h)
        return torch.addcmul(theta, p.g.sign(), p.size, value=-1), {"prev": p.g, "step_size": p.size}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        sign, factor, raw, _, g = self._parts(s, G, h)
        size_bar = S["step_size"] - g.sign() * B
        below = (1 + torch.sign(h["step_size_max"].to(raw) - raw)) / 2  # 1, or 0 beyond the bound, or 1/2 on it
        above = (1 + torch.sign(raw - h["step_size_min"].to(raw))) / 2
        raw_bar = size_bar * below * above
        A: Thunks = {
            "etaplus": lambda: torch.where(sign > 0, raw_bar * s["step_size"], 0.0),
            "etaminus": lambda: torch.where(sign < 0, raw_bar * s["step_size"], 0.0),
            "step_size_min": lambda: size_bar * (1 - above),
            "step_size_max": lambda: size_bar * (1 - below),
        }
        kept = torch.where(sign < 0, 0.0, S["prev"])
        return -kept if self.maximize else kept, B, {"prev": torch.zeros_like(kept), "step_size": raw_bar * factor}, A
