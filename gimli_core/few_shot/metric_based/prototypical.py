"""Prototypical networks: Snell, Swersky & Zemel 2017, "Prototypical networks for few-shot learning"."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.method import Method
from gimli_core.few_shot.metric_based.embedding import class_means, embedded

__all__ = ["Prototypical"]


class Prototypical(Method):
    """A query's class is that of the nearest mean of a class's embedded support.

        c_k = mean of f(x_i) over the support of class k,     P(y = k | x) = softmax_k(-|f(x) - c_k|²)

    No inner loop: J = 0 of Algorithm 1, and `loss.backward()` is the meta-gradient.

    Args:
        embedding: f.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def loss(self, episode: Episode) -> Tensor:
        scores = self.predict(episode.support_x, episode.support_y, episode.query_x)
        return cross_entropy(scores.flatten(0, 1), episode.query_y.flatten())

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        shown, asked = embedded(self.embedding, support_x, query_x)
        return -(asked[:, :, None] - class_means(shown, support_y)[:, None]).square().sum(-1)
