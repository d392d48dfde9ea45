"""The LSTM meta-learner: Ravi & Larochelle 2017, "Optimization as a model for few-shot learning"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.approximation import FirstOrder
from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.gradient_based.adapting import Adapting, by_name, learned
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers import DerivedOptimizer, hyperparameter

__all__ = ["LstmMetaLearner", "LstmRule", "preprocessed"]

P = 10.0  # of the preprocessing


class LstmMetaLearner(Adapting):
    """Learns the rule itself, an LSTM whose cell state is theta, and theta_0: A_opt and B_0.

    As in the paper the derivative of G and ℓ with respect to theta is left out (`gimli.FirstOrder()`); set `exact` for
    the meta-gradient with it.

    Args:
        learner, steps, test_steps, objective: as in `Adapting`; 12 steps for 1 shot, 5 for 5 in the paper.
        hidden: of the first LSTM; 20 in the paper.
        lr: where the input gate starts; the forget gate starts near 1.
    """

    exact = False

    def __init__(
        self, learner: nn.Module, lr: float = 0.02, steps: int = 5, hidden: int = 20, **arguments: Any
    ) -> None:
        super().__init__(learner, LstmRule(hidden=hidden), steps, **arguments)
        self.rule = learned(initial_rule(hidden, lr))

    def meta_parameters(self) -> dict[str, Any]:
        return {"phi_opt": {"rule": by_name(self.rule)}}

    def loss(self, episode: Episode) -> Tensor:
        return self.unrolled(episode, approximation=None if self.exact else FirstOrder())


@dataclass(frozen=True, eq=False)
class LstmRule(DerivedOptimizer):
    """The same for every coordinate, each with a state of its own:

    h', c' = LSTM(preprocessed(G), preprocessed(ℓ); h, c)
    f' = sigmoid(w_f·[h', theta, f] + b_f),   i' = sigmoid(w_i·[h', theta, i] + b_i)
    theta' = f'·theta - i'·G
    """

    sees = ("loss",)
    rule: Any = hyperparameter(None)
    hidden: int = 20

    def own_parameters(self) -> tuple[str, ...]:
        return ("rule",)

    def slots(self) -> tuple[str, ...]:
        return ("h", "c", "f", "i")

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        wide = {k: v.new_zeros(*v.shape, self.hidden) for k, v in theta.items()}
        gates = {"f": {k: torch.ones_like(v) for k, v in theta.items()}}
        gates["i"] = {k: torch.zeros_like(v) for k, v in theta.items()}
        return {"step": torch.zeros((), dtype=torch.float64), "h": wide, "c": dict(wide), **gates}

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        own = self.own_tensors(hyper, "rule")
        moved: Tensors = {}
        new: dict[str, Tensors] = {slot: {} for slot in self.slots()}
        for k, v in theta.items():
            loss = hyper[k]["loss"].to(v.dtype).expand_as(v)
            seen = torch.cat([preprocessed(G[k]), preprocessed(loss)], -1)
            gates = seen @ own["input"].T + state["h"][k] @ own["hidden"].T + own["bias"]
            i, f, g, o = gates.chunk(4, -1)
            c = torch.sigmoid(f) * state["c"][k] + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            new["h"][k], new["c"][k] = h, c
            for gate in ("f", "i"):
                before = torch.stack([v, state[gate][k]], -1)
                new[gate][k] = torch.sigmoid(torch.cat([h, before], -1) @ own[gate] + own[f"{gate}_bias"])
            moved[k] = new["f"][k] * v - new["i"][k] * G[k]
        return moved, {"step": state["step"] + 1, **new}


def preprocessed(x: Tensor) -> Tensor:
    """[…, 2]: (ln|x|/p, sign x) where |x| >= e^-p, else (-1, e^p·x). Andrychowicz et al. 2016, appendix A."""
    large = x.abs() >= math.exp(-P)
    size = torch.where(large, x.abs().clamp_min(math.exp(-P)).log() / P, -1.0)
    return torch.stack([size, torch.where(large, x.sign(), math.exp(P) * x)], -1)


def initial_rule(hidden: int, lr: float) -> Mapping[str, Tensor]:
    """A rule that starts near SGD of rate `lr`: forget gate near 1, input gate near `lr`, small random weights."""

    def small(*shape: int) -> Tensor:
        return 0.01 * (2 * torch.rand(shape) - 1)

    return {
        "input": small(4 * hidden, 4),
        "hidden": small(4 * hidden, hidden),
        "bias": torch.zeros(4 * hidden),
        "f": small(hidden + 2),
        "f_bias": torch.tensor(6.0),
        "i": small(hidden + 2),
        "i_bias": torch.tensor(lr).logit(),
    }
