"""The LSTM meta-learner of Ravi & Larochelle 2017: theta is the cell of an LSTM whose gates are learned."""

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

__all__ = ["MetaLSTM"]


@dataclass(frozen=True, eq=False)
class MetaLSTM(DerivedOptimizer):
    """theta' = f ⊙ theta - i ⊙ G: a step of its own length, and a decay, for every coordinate.

        x    = (log|G|/p, sign G, log|ℓ|/p, sign ℓ)             preprocessing.py
        h'   = LSTM(x; h, c)
        i'   = σ(w_i·(h', theta, i) + b_i)                      "input gate": the learning rate
        f'   = σ(w_f·(h', theta, f) + b_f)                      "forget gate": what stays of theta
        theta' = f'·theta - i'·G

    All coordinates share the weights. It sees the loss, which is differentiated exactly (optimizers/seen.py). The paper
    learns theta_0 too (`result.B_0`), and leaves out the derivatives of G and ℓ by theta.

    Args:
        net: the weights, in phi_opt or here; `parameters(seed)` makes some to start with.
        hidden: of the LSTM under the gates; 20 in the paper.

    Raises:
        ArgumentError: a size that is no whole number >= 1.

    Cost: state (2·hidden + 2)·|theta|. Source: Ravi & Larochelle 2017, "Optimization as a model for few-shot learning".

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (theta["w"] ** 2).sum()
    >>> rule = gimli.learned.MetaLSTM(hidden=4)
    >>> problem = gimli.Problem(loss, loss, rule)
    >>> theta_0, phi_opt = {"w": torch.ones(3)}, {"net": rule.parameters(seed=0)}
    >>> result = gimli.meta_gradient(problem, theta_0, [None] * 5, None, phi_opt=phi_opt)
    >>> 0.8 < result.theta_J["w"][0] < 1                         # it starts as gradient descent with a small rate
    tensor(True)
    """

    sees = ("loss",)

    net: Any = hyperparameter(None)
    hidden: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("MetaLSTM", hidden=self.hidden)

    def own_parameters(self) -> tuple[str, ...]:
        return ("net",)

    def slots(self) -> tuple[str, ...]:
        return "h", "c", "i", "f"

    def parameters(self, seed: int = 0) -> Tensors:
        """Weights to start from, as published: by their biases f is near 1 and i near 0, plain gradient descent."""
        generator = torch.Generator().manual_seed(seed)
        net = lstm_start("lstm", 4, self.hidden, generator)
        for gate, bias in (("i", -5.0), ("f", 4.0)):
            net |= linear_start(gate, self.hidden + 2, 1, generator, scale=0.1)
            net[f"{gate}.b"] = bias + torch.rand(1, generator=generator)
        return net

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        wide = {k: v.new_zeros(*v.shape, self.hidden) for k, v in theta.items()}
        gates = {k: torch.zeros_like(v) for k, v in theta.items()}
        start = {"h": wide, "c": dict(wide), "i": gates, "f": dict(gates)}
        return {"step": torch.zeros((), dtype=torch.float64), **start}

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        net = self.own_tensors(hyper, "net")
        new: State = {"step": state["step"] + 1} | {slot: {} for slot in self.slots()}
        moved = {}
        for k, w in theta.items():
            loss = hyper[k]["loss"].to(w.dtype).expand(w.shape)
            x = torch.stack([*log_and_sign(G[k]), *log_and_sign(loss)], -1)
            h, new["c"][k] = lstm(net, "lstm", x, state["h"][k], state["c"][k])

            def gate(name: str, h: Tensor = h, w: Tensor = w, k: str = k) -> Tensor:
                seen = torch.cat([h, w.unsqueeze(-1), state[name][k].unsqueeze(-1)], -1)
                return torch.sigmoid(F.linear(seen, net[f"{name}.W"], net[f"{name}.b"])).squeeze(-1)

            new["h"][k], new["i"][k], new["f"][k] = h, gate("i"), gate("f")
            moved[k] = new["f"][k] * w - new["i"][k] * G[k]
        return moved, new
