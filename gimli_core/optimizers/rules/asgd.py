"""Averaged SGD, as in `torch.optim.ASGD`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer, reduce_like

__all__ = ["ASGD"]


@dataclass(frozen=True, eq=False)
class ASGD(WeightDecay, ElementwiseOptimizer):
    """Averaged SGD (Polyak and Juditsky 1992), as torch.optim writes it.

        g      = ±G + weight_decay·theta                    (minus when maximize)
        theta' = theta·(1 - lambd·eta) - eta·g
        ax'    = ax + mu·(theta' - ax)
        eta'   = lr / (1 + lambd·lr·t)^alpha,   eta_0 = lr
        mu'    = 1 / max(1, t - t0),            mu_0 = 1

    A change of lr reaches theta one step later, by way of eta; lr at the last step has no effect.
    theta does not depend on the average `ax`: read it from `state_J["ax"]`.

    Args:
        lr, lambd, alpha, t0, weight_decay: numbers, or any form that a meta-parameter takes.
        maximize: a switch, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state |theta|, and eta and mu: one number each, or |theta| for per-element lr, lambd, alpha or t0.
    Source: `torch.optim.ASGD` (which keeps eta and mu in torch's default dtype; here they are float64).
    Proof in appendix_proofs/asgd.py.

    >>> import torch, gimli_core as gimli
    >>> asgd = gimli.optimizers.ASGD(lr=0.5)
    >>> asgd.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # -eta
    tensor([-0.5000])
    """

    lr: Any = hyperparameter(1e-2)
    lambd: Any = hyperparameter(1e-4)
    alpha: Any = hyperparameter(0.75)
    t0: Any = hyperparameter(1e6, low=float("-inf"))
    weight_decay: Any = hyperparameter(0.0)
    maximize: bool = False

    def slots(self) -> tuple[str, ...]:
        return ("eta", "mu", "ax")

    def _initial(self, slot: str, theta: Tensor, h: Tensors) -> Tensor:
        if slot == "eta":
            return h["lr"] + torch.zeros_like(h["lambd"] + h["alpha"])
        return torch.ones_like(h["t0"]) if slot == "mu" else torch.zeros_like(theta)

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        if "lr" not in wanted:
            return {}
        return {k: {"lr": reduce_like(S_k, hyper[k]["lr"])} for k, S_k in S_0["eta"].items()}

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        eta, mu, ax = s["eta"], s["mu"], s["ax"]
        theta = theta * (1 - h["lambd"] * eta) - eta * self._descent(theta, G, h)
        new = {
            "eta": h["lr"] / (1 + h["lambd"] * h["lr"] * t) ** h["alpha"],
            "mu": 1 / torch.maximum(t - h["t0"], torch.ones_like(h["t0"])),
            "ax": theta + (1 - mu) * (ax - theta),  # so written, it is theta' to the last bit at mu = 1
        }
        return theta, new

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        eta, mu, lr, lambd, alpha = s["eta"], s["mu"], h["lr"], h["lambd"], h["alpha"]
        g = self._descent(theta, G, h)
        new_theta = theta * (1 - lambd * eta) - eta * g
        B = B + mu * S["ax"]
        S_j = {
            "eta": reduce_like(-B * (lambd * theta + g), eta),
            "mu": reduce_like(S["ax"] * (new_theta - s["ax"]), mu),
            "ax": (1 - mu) * S["ax"],
        }
        eta_bar, wait = S["eta"], t - h["t0"]
        q = 1 + lambd * lr * t
        A: Thunks = {
            "lr": lambda: eta_bar * (q**-alpha - alpha * lambd * lr * t * q ** (-alpha - 1)),
            "lambd": lambda: (
                reduce_like(-B * eta * theta, lambd)
                + reduce_like(-eta_bar * alpha * lr**2 * t * q ** (-alpha - 1), lambd)
            ),
            "alpha": lambda: -eta_bar * lr * q**-alpha * torch.log1p(lambd * lr * t),
            "t0": lambda: S["mu"] * (1 + torch.sign(wait - 1)) / 2 / torch.maximum(wait, torch.ones_like(wait)) ** 2,
        }
        V, B_j = self._decay_pullback(theta, h, B, -eta * B, A)
        return V, B_j - lambd * eta * B, S_j, A
