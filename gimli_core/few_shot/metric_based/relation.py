"""Relation network: Sung et al. 2018, "Learning to compare: relation network for few-shot learning"."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import one_hot

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.method import Method
from gimli_core.few_shot.metric_based.embedding import class_means, embedded
from gimli_core.few_shot.networks.parts import batch_norm, convolution

__all__ = ["Relation", "feature_maps"]


class Relation(Method):
    """A learned comparison: r_k = g([C(support of k), C(x)]) in (0, 1), and the loss Σ_k (r_k - [y = k])².

    C is the sum over the support of a class of its feature maps, as in the paper. No inner loop: J = 0 of Algorithm 1.

    Args:
        channels, size: of the pictures.
        filters: of all convolutions; 64 in the paper.
        hidden: of the last layers; 8 in the paper.
        statistics: of batch norm.
        fast: what makes a network of convolutions faster.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        filters: int = 64,
        hidden: int = 8,
        statistics: str = "batch",
        fast: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        super().__init__()
        maps, size = feature_maps(channels, size, filters, statistics)
        # The first convolution of g is linear in its two halves: one an image, added for a pair, does for all pairs.
        self.of_class, self.of_query = (fast(convolution(filters, filters)) for _ in range(2))
        compare: list[nn.Module] = []
        for number in range(2):
            compare += [convolution(filters, filters)] if number else []
            compare.append(batch_norm(filters, statistics))
            if size > 1:
                compare.append(nn.MaxPool2d(2))
            compare.append(nn.ReLU())
            size = max(size // 2, 1)
        last = [nn.Linear(filters * size * size, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()]
        self.maps, self.compare = fast(maps), fast(nn.Sequential(*compare, nn.Flatten(), *last))

    def loss(self, episode: Episode) -> Tensor:
        scores = self.predict(episode.support_x, episode.support_y, episode.query_x)
        return (scores - one_hot(episode.query_y).to(scores.dtype)).square().mean()

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        shown, asked = embedded(self.maps, support_x, query_x)
        shots = one_hot(support_y).sum(1).to(shown.dtype)
        of_class = class_means(shown, support_y) * shots[..., None, None, None]
        tasks, way, queries = *of_class.shape[:2], asked.shape[1]
        left, right = self.of_class(of_class.flatten(0, 1)), self.of_query(asked.flatten(0, 1))
        pairs = left.unflatten(0, (tasks, 1, way)) + right.unflatten(0, (tasks, queries, 1))
        scores: Tensor = self.compare(pairs.flatten(0, 2)).view(tasks, queries, way)
        return scores


def feature_maps(channels: int, size: int, filters: int, statistics: str) -> tuple[nn.Sequential, int]:
    """(four convolutions of which the first two are followed by pooling, the size of the maps)."""
    layers: list[nn.Module] = []
    for number in range(4):
        layers += [convolution(channels, filters), batch_norm(filters, statistics)]
        if number < 2 and size > 1:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        layers.append(nn.ReLU())
        channels = filters
    return nn.Sequential(*layers), size
