"""The learned optimizer of Andrychowicz et al. 2016: one small LSTM, run for every coordinate by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gimli_core.learned.cells import check_sizes, linear_start, lstm, lstm_start
from gimli_core.learned.preprocessing import log_and_sign
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.derived import DerivedOptimizer
from gimli_core.optimizers.interface import hyperparameter

__all__ = ["CoordinatewiseLSTM"]


@dataclass(frozen=True, eq=False)
class CoordinatewiseLSTM(DerivedOptimizer):
    """theta' = theta + scale·m, where m comes from an LSTM that sees its coordinate's gradient alone.

        x            = (log|G|/p, sign G)                       preprocessing.py
        h_1', c_1'   = LSTM_1(x; h_1, c_1)
        h_l', c_l'   = LSTM_l(h_{l-1}'; h_l, c_l)               l = 2 … layers
        m            = w·h_layers' + b

    All coordinates share the weights; each has its own h and c, 0 at the start. The paper trains with the derivative of
    G by theta left out (`approximation=gimli.FirstOrder()`); without that it is exact.

    Args:
        net: the weights, in phi_opt or here; `parameters(seed)` makes some to start with.
        hidden, layers: of the LSTM; 20 and 2 in the paper.
        scale: of the output; 0.1 in the paper.

    Raises:
        ArgumentError: sizes that are no whole numbers >= 1.

    Cost: state 2·layers·hidden·|theta|; about 8·hidden·(2·layers·hidden)·|theta| multiplications a step, and five times
    as many for its pullback.
    Source: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent".

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (theta["w"] ** 2).sum()
    >>> rule = gimli.learned.CoordinatewiseLSTM(hidden=4)
    >>> net = rule.parameters(seed=0)
    >>> problem = gimli.Problem(loss, loss, rule)
    >>> result = gimli.meta_gradient(problem, {"w": torch.ones(3)}, [None] * 5, None, phi_opt={"net": net})
    >>> sorted(result.A_opt["net"]) == sorted(net), result.state_J["h1"]["w"].shape
    (True, torch.Size([3, 4]))
    """

    net: Any = hyperparameter(None)
    hidden: int = 20
    layers: int = 2
    scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("CoordinatewiseLSTM", hidden=self.hidden, layers=self.layers)

    def own_parameters(self) -> tuple[str, ...]:
        return ("net",)

    def slots(self) -> tuple[str, ...]:
        return tuple(f"{part}{layer}" for layer in range(1, self.layers + 1) for part in "hc")

    def parameters(self, seed: int = 0) -> Tensors:
        """Weights to start from: random, with small steps against nothing in particular."""
        generator = torch.Generator().manual_seed(seed)
        net: Tensors = {}
        for layer in range(1, self.layers + 1):
            net |= lstm_start(f"lstm{layer}", 2 if layer == 1 else self.hidden, self.hidden, generator)
        return net | linear_start("out", self.hidden, 1, generator)

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        zeros = {k: v.new_zeros(*v.shape, self.hidden) for k, v in theta.items()}
        return {"step": torch.zeros((), dtype=torch.float64)} | {slot: dict(zeros) for slot in self.slots()}

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        net = self.own_tensors(hyper, "net")
        new: State = {"step": state["step"] + 1} | {slot: {} for slot in self.slots()}
        moved = {}
        for k, w in theta.items():
            x: Tensor = torch.stack(log_and_sign(G[k]), -1)
            for layer in range(1, self.layers + 1):
                h, c = f"h{layer}", f"c{layer}"
                x, new[c][k] = lstm(net, f"lstm{layer}", x, state[h][k], state[c][k])
                new[h][k] = x
            moved[k] = w + self.scale * F.linear(x, net["out.W"], net["out.b"]).squeeze(-1)
        return moved, new
