"""Meta-SGD: Li, Zhou, Chen & Li 2017, "Meta-SGD: learning to learn quickly for few-shot learning"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.few_shot.gradient_based.adapting import Adapting, by_name, learned
from gimli_core.meta_parameters.marks import per_element
from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["MetaSgd", "SignedSGD"]


class MetaSgd(Adapting):
    """Learns, beside theta_0, a rate for each of its elements, of either sign: B_0 and A_opt.

    Args:
        learner, steps, test_steps, objective: as in `Adapting`; the paper takes 1 step.
        lr: where the rates start, about which they are drawn evenly between half and one and a half of it.
    """

    def __init__(self, learner: nn.Module, lr: float = 0.1, steps: int = 1, **arguments: Any) -> None:
        super().__init__(learner, SignedSGD(), steps, **arguments)
        self.rates = learned({k: lr * (0.5 + torch.rand_like(v)) for k, v in learner.named_parameters()})

    def meta_parameters(self) -> dict[str, Any]:
        return {"phi_opt": {"lr": per_element(by_name(self.rates))}}


@dataclass(frozen=True, eq=False)
class SignedSGD(ElementwiseOptimizer):
    """theta' = theta - lr·G, where a rate may be negative: the paper's α gives the direction too."""

    lr: Any = hyperparameter(0.1, low=float("-inf"))

    def slots(self) -> tuple[str, ...]:
        return ()

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensors]:
        return theta - h["lr"] * G, {}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        return -h["lr"] * B, B, {}, {"lr": lambda: -B * G}
