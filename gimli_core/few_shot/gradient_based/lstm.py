"""The LSTM meta-learner: Ravi & Larochelle 2017, "Optimization as a model for few-shot learning"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.approximation import FirstOrder
from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.gradient_based.adapting import Adapting, by_name, learned
from gimli_core.learned import MetaLSTM

__all__ = ["LstmMetaLearner"]


class LstmMetaLearner(Adapting):
    """Learns the rule itself, `gimli.learned.MetaLSTM`, whose cell state is theta, and theta_0: A_opt and B_0.

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
        rule = MetaLSTM(hidden=hidden)
        super().__init__(learner, rule, steps, **arguments)
        start = {name: 0.1 * weight for name, weight in rule.parameters(seed=0).items()}  # near SGD of rate `lr`
        self.rule = learned({**start, "i.b": torch.tensor([lr]).logit(), "f.b": torch.tensor([6.0])})

    def meta_parameters(self) -> dict[str, Any]:
        return {"phi_opt": {"net": by_name(self.rule)}}

    def loss(self, episode: Episode) -> Tensor:
        return self.unrolled(episode, approximation=None if self.exact else FirstOrder())
