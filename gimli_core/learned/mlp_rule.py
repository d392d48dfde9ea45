"""A small network of a few averages of the gradient: a learned optimizer that is quick, and has little state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gimli_core.learned.cells import check_sizes, linear_start
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.derived import DerivedOptimizer
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.singular import flat_sqrt

__all__ = ["MLPRule"]

DECAYS = (0.5, 0.9, 0.99)  # of the averages of G
SECOND = 0.95  # of the average of G²
AGES = (3.0, 30.0, 300.0)  # steps that are told apart


@dataclass(frozen=True, eq=False)
class MLPRule(DerivedOptimizer):
    """theta' = theta - scale·d·exp(scale·m), with (d, m) from a small network for every coordinate.

        m_i'  = β_i m_i + (1 - β_i) G,   v' = β v + (1 - β) G²,   both divided by 1 - β^t where they are used
        x     = (G, m_1, m_2, m_3)/(√v + ε), tanh(t/τ) for three τ
        d, m  = MLP(x),   which starts as d = x's second entry, about that of RMSprop with momentum

    Args:
        net: the weights, in phi_opt or here; `parameters(seed)` makes some to start with.
        hidden: of the network's one hidden layer.
        scale: of steps; the network multiplies it by exp(scale·m) and d.

    Raises:
        ArgumentError: a size that is no whole number >= 1.

    Cost: state 4·|theta|; about 10·hidden·|theta| multiplications a step.
    Source: after Metz et al. 2020, "Tasks, stability, architecture, and compute: training more effective learned
    optimizers", whose per-parameter network sees such features; theirs are more.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (theta["w"] ** 2).sum()
    >>> rule = gimli.learned.MLPRule()
    >>> theta_0, phi_opt = {"w": torch.ones(3)}, {"net": rule.parameters(seed=0)}
    >>> result = gimli.meta_gradient(gimli.Problem(loss, loss, rule), theta_0, [None] * 5, None, phi_opt=phi_opt)
    >>> result.val_loss < 3                                       # it descends before it has learned anything
    tensor(True)
    """

    net: Any = hyperparameter(None)
    hidden: int = 16
    scale: float = 0.01
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("MLPRule", hidden=self.hidden)

    def own_parameters(self) -> tuple[str, ...]:
        return ("net",)

    def slots(self) -> tuple[str, ...]:
        return "m1", "m2", "m3", "v"

    def parameters(self, seed: int = 0) -> Tensors:
        """Weights to start from: a step along the second average, and small random weights around it."""
        generator = torch.Generator().manual_seed(seed)
        inputs = 1 + len(DECAYS) + len(AGES)
        net = linear_start("in", inputs, self.hidden, generator) | linear_start("out", self.hidden, 2, generator, 0.1)
        skip = torch.zeros(2, inputs)
        skip[0, 2] = 1.0
        return {**net, "skip.W": skip}

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        net, t = self.own_tensors(hyper, "net"), state["step"] + 1
        new: State = {"step": t} | {slot: {} for slot in self.slots()}
        moved = {}
        for k, w in theta.items():
            seen = [G[k]]
            for slot, decay in zip(("m1", "m2", "m3"), DECAYS, strict=True):
                m = new[slot][k] = decay * state[slot][k] + (1 - decay) * G[k]
                seen.append(m / (1 - decay**t).to(m.dtype))
            v = new["v"][k] = SECOND * state["v"][k] + (1 - SECOND) * G[k] ** 2
            size = flat_sqrt(v / (1 - SECOND**t).to(v.dtype)) + self.eps
            ages = [torch.tanh(t / age).to(w.dtype).expand(w.shape) for age in AGES]
            x = torch.stack([*(part / size for part in seen), *ages], -1)
            hidden = torch.tanh(F.linear(x, net["in.W"], net["in.b"]))
            d, m = (F.linear(hidden, net["out.W"], net["out.b"]) + F.linear(x, net["skip.W"])).unbind(-1)
            moved[k] = w - self.scale * d * torch.exp(self.scale * m)
        return moved, new
