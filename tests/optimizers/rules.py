"""Optimizers that tests write for themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers import DerivedOptimizer, hyperparameter
from gimli_core.optimizers.rules.singular import flat_sqrt

__all__ = ["PlainAdam"]


@dataclass(frozen=True, eq=False)
class PlainAdam(DerivedOptimizer):
    """Adam, of which only the step is written."""

    lr: Any = hyperparameter(0.1)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.999, below=1.0)
    eps: Any = hyperparameter(1e-8)

    def slots(self) -> tuple[str, ...]:
        return ("m", "v")

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        t = state["step"] + 1
        m = {k: hyper[k]["beta1"] * state["m"][k] + (1 - hyper[k]["beta1"]) * g for k, g in G.items()}
        v = {k: hyper[k]["beta2"] * state["v"][k] + (1 - hyper[k]["beta2"]) * g**2 for k, g in G.items()}
        new = {}
        for k, w in theta.items():
            h = hyper[k]
            root = flat_sqrt(v[k] / (1 - h["beta2"] ** t))
            new[k] = w - h["lr"] * m[k] / (1 - h["beta1"] ** t) / (root + h["eps"])
        return new, {"step": t, "m": m, "v": v}
