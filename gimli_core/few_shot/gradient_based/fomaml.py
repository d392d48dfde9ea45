"""First-order MAML: Finn et al. 2017, section 5.2, and Nichol, Achiam & Schulman 2018."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gimli_core.arguments.approximation import FirstOrder
from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.gradient_based.adapting import Adapting
from gimli_core.optimizers import SGD

__all__ = ["Fomaml"]


class Fomaml(Adapting):
    """MAML without the curvature of line 14: B_0 = B_J, the query gradient at the adapted weights.

    Args:
        learner, steps, test_steps, objective: as in `Adapting`.
        lr: of the inner SGD.
    """

    def __init__(self, learner: nn.Module, lr: float = 0.4, steps: int = 1, **arguments: Any) -> None:
        super().__init__(learner, SGD(lr=lr), steps, **arguments)

    def loss(self, episode: Episode) -> Tensor:
        return self.unrolled(episode, approximation=FirstOrder())
