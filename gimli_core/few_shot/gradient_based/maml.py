"""MAML: Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning for fast adaptation of deep networks"."""

from __future__ import annotations

from typing import Any

from torch import nn

from gimli_core.few_shot.gradient_based.adapting import Adapting
from gimli_core.optimizers import SGD

__all__ = ["Maml"]


class Maml(Adapting):
    """Learns the initialisation theta_0 by its exact meta-gradient B_0, through inner SGD of a fixed rate.

    Args:
        learner, steps, test_steps, objective: as in `Adapting`; on Omniglot 1 step in training, 3 in the test.
        lr: of the inner SGD, 0.4 on Omniglot, 0.01 on miniImageNet.
    """

    def __init__(self, learner: nn.Module, lr: float = 0.4, steps: int = 1, **arguments: Any) -> None:
        super().__init__(learner, SGD(lr=lr), steps, **arguments)
