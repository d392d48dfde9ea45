"""Reptile: Nichol, Achiam & Schulman 2018, "On first-order meta-learning algorithms"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.gradient_based.adapting import Adapting
from gimli_core.optimizers import Adam
from gimli_core.optimizers.interface import Optimizer

__all__ = ["Reptile"]


class Reptile(Adapting):
    """Moves theta_0 towards where training on a task leads, W = theta_J: no query loss, no second derivative.

    `loss` is mean over tasks of |theta_0 - W|²/2 with W held constant. Its gradient is theta_0 - W, so a step of
    `torch.optim.SGD(lr=ε)` is the paper's theta_0 + ε·mean(W - theta_0); the paper also names Adam, given the same
    gradient. All rows of an episode are trained on, in small batches that depend on the episode's number.

    Args:
        learner, test_steps, objective: as in `Adapting`; 50 steps in the test on Omniglot.
        optimizer: of the inner loop; the paper's is Adam with a rate of 0.001 and beta1 = 0.
        steps: J in training, 5 on Omniglot.
        batch: rows an inner step, 10 on Omniglot.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: Optimizer = Adam(lr=1e-3, betas=(0.0, 0.999)),  # noqa: B008 - a value, never changed
        steps: int = 5,
        batch: int = 10,
        **arguments: Any,
    ) -> None:
        super().__init__(learner, optimizer, steps, **arguments)
        self.batch = batch

    def loss(self, episode: Episode) -> Tensor:
        x = torch.cat([episode.support_x, episode.query_x], 1)
        y = torch.cat([episode.support_y, episode.query_y], 1)
        W = self.adapted(x, y, steps=self.steps, train_batches=self._batches(x, y, self.steps, episode.number)).theta_J
        squares = [(theta - W[k]).square().sum() for k, theta in self.theta_0().items()]
        return torch.stack(squares).sum() / (2 * episode.tasks)

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        batches = self._batches(support_x, support_y, self.test_steps, 0)
        return self.outputs(self.adapted(support_x, support_y, train_batches=batches).theta_J, query_x)

    def _batches(self, x: Tensor, y: Tensor, steps: int, number: int) -> list[tuple[Tensor, Tensor]]:
        """Every step so many rows of each task, gone through in random order again and again."""
        count = x.shape[1]
        if count <= self.batch:
            return [(x, y)] * steps
        generator = torch.Generator().manual_seed(number)
        passes = -(-steps * self.batch // count)
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
        return [(x[:, i], y[:, i]) for i in order.split(self.batch)[:steps]]
