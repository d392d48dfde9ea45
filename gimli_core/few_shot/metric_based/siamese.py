"""Siamese networks: Koch, Zemel & Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition"."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.method import Method
from gimli_core.few_shot.metric_based.embedding import embedded

__all__ = ["Siamese"]


class Siamese(Method):
    """Verification: p(same class) = sigmoid(wᵀ|f(x_i) - f(x_j)| + b), trained on pairs by cross entropy.

    Every query is paired with every support row, so one pair in `way` is of the same class. The paper draws as many of
    either kind; here all count alike: b learns that most differ, and what is left to learn are the pairs that look the
    same and are not. w starts negative: the further apart, the less likely the same. A query gets the class whose
    support is likeliest the same. No inner loop: J = 0 of Algorithm 1.

    Args:
        embedding: f.
        features: how many numbers f gives.
    """

    def __init__(self, embedding: nn.Module, features: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.weigh = nn.Linear(features, 1)
        nn.init.constant_(self.weigh.weight, -0.5)

    def _logits(self, support_x: Tensor, query_x: Tensor) -> Tensor:
        """[T, Q, S], of the same class or not."""
        shown, asked = embedded(self.embedding, support_x, query_x)
        shown, asked = torch.sigmoid(shown), torch.sigmoid(asked)  # the paper's last layer of f
        logits: Tensor = self.weigh((asked[:, :, None] - shown[:, None]).abs()).squeeze(-1)
        return logits

    def loss(self, episode: Episode) -> Tensor:
        same = (episode.query_y[:, :, None] == episode.support_y[:, None]).to(episode.support_x.dtype)
        return binary_cross_entropy_with_logits(self._logits(episode.support_x, episode.query_x), same)

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        logits = self._logits(support_x, query_x)
        way = int(support_y.max()) + 1
        of_class = support_y[:, None, None, :] == torch.arange(way, device=support_y.device)[:, None]  # [T, 1, way, S]
        return logits[:, :, None].masked_fill(~of_class, float("-inf")).amax(-1)
