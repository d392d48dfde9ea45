"""MAML++: Antoniou, Edwards & Storkey 2019, "How to train your MAML"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.approximation import FirstOrder
from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.gradient_based.adapting import Adapting, by_name, learned
from gimli_core.meta_parameters.marks import per_step
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD

__all__ = ["MamlPlusPlus", "annealed", "multi_step_weights"]


class MamlPlusPlus(Adapting):
    """MAML with the paper's remedies; the cosine rate of the outer Adam is the outer loop's.

        multi-step loss                L = Σ_j w_j L_val(theta_j), w annealed to the last step alone
        per-layer per-step rates       lr[k][j], learned through A_opt, kept positive as exp
        derivative-order annealing     first order for the first meta-batches
        per-step batch norm            scale and shift [J + 1, channels], learned and not adapted: phi_loss

    Normalisation is by statistics of the batch at hand in every step, as in the paper's code, whose running ones are
    never read. Each theta_j has its own scale and shift, for support and queries alike.

    Args:
        learner, objective: as in `Adapting`.
        lr: where the rates start.
        steps: J, in training and test alike: rates and scales exist for so many.
        anneal: meta-batches until the multi-step weights are on the last step alone.
        first_order: meta-batches without second derivatives.
        per_step_norm: False shares scale and shift over steps and lets them adapt: GIMLI's variant in Section 5.2.
    """

    def __init__(
        self,
        learner: nn.Module,
        lr: float = 0.1,
        steps: int = 5,
        *,
        anneal: int = 500,
        first_order: int = 0,
        per_step_norm: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(learner, SGD(), steps, **arguments)
        self.anneal, self.first_order = anneal, first_order
        norms = {name for name, module in learner.named_modules() if isinstance(module, nn.BatchNorm2d)}
        shared = {k: v for k, v in learner.named_parameters() if k.rpartition(".")[0] in norms} if per_step_norm else {}
        for k in shared:  # what differs from step to step stands below, once a step
            learner.get_parameter(k).requires_grad_(False)
        self.norm = learned({k: v.detach().repeat(steps + 1, 1) for k, v in shared.items()})
        self.log_lr = learned({k: torch.full((steps,), lr).log() for k in self.theta_0()})

    def theta_0(self) -> Mapping[str, Tensor]:
        return {k: v for k, v in self.learner.named_parameters() if k.replace(".", "/") not in self.norm}

    def meta_parameters(self) -> dict[str, Any]:
        rates = {k: v.exp() for k, v in by_name(self.log_lr).items()}
        return {"phi_opt": {"lr": per_step(rates)}, "phi_loss": by_name(self.norm)}

    def weights(self, theta: Tensors, phi_loss: Tensors, j: Tensor) -> Tensors:
        return {**theta, **{k: v.index_select(0, j.view(1))[0] for k, v in phi_loss.items()}}

    def loss(self, episode: Episode) -> Tensor:
        return annealed(self, episode, self.anneal, self.first_order)


def annealed(method: Adapting, episode: Episode, anneal: int, first_order: int) -> Tensor:
    """The multi-step loss with the weights, and the derivatives of the order, that belong to the episode's number."""
    approximation = FirstOrder() if episode.number < first_order else None
    weights = multi_step_weights(method.steps, episode.number, anneal)
    return method.unrolled(episode, approximation=approximation, val_weights=weights)


def multi_step_weights(steps: int, number: int, anneal: int) -> list[float]:
    """w_1 … w_J in meta-batch `number`: even at first, then linearly to (0, …, 0, 1) at `anneal`.

    >>> from gimli_core.few_shot.gradient_based.maml_pp import multi_step_weights
    >>> multi_step_weights(4, 0, 100), multi_step_weights(4, 50, 100), multi_step_weights(2, 100, 100)
    ([0.25, 0.25, 0.25, 0.25], [0.125, 0.125, 0.125, 0.625], [0.0, 1.0])
    """
    left = max(0.0, 1 - number / anneal) if anneal else 0.0
    each = left / steps
    return [each] * (steps - 1) + [1 - each * (steps - 1)]
