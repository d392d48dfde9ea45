"""The one face of all methods, their training and their evaluation.

loss(episode) -> scalar               the mean over the tasks of a meta-batch, with a gradient for the parameters
predict(support_x, support_y, query_x) -> scores [T, Q, way]      the largest is the answer
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gimli_core.few_shot.episodes import Episode, EpisodeSource

__all__ = ["Estimator", "Evaluation", "Method", "evaluate"]


class Method(nn.Module):
    """Base of all methods: an `nn.Module` whose parameters are what is meta-learned."""

    def loss(self, episode: Episode) -> Tensor:
        """The mean loss of the queries of T tasks."""
        raise NotImplementedError

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Scores [T, Q, way] of queries [T, Q, …], by what is shown: [T, S, …] with classes [T, S]."""
        raise NotImplementedError


class Estimated(NamedTuple):
    """What an outer step met."""

    val_loss: Tensor


class Estimator:
    """A method as the `OuterLoop` takes it: the gradients of `loss(episode)` in the parameters' `.grad`.

    Args:
        method: one of the methods. Its buffers, such as running statistics, go into checkpoints.
        said: of what it is trained by: a checkpoint of another training is not taken up.
    """

    def __init__(self, method: Method, said: str = "") -> None:
        self.method, self.said = method, said

    def parameters(self) -> Mapping[str, Tensor]:
        return dict(self.method.named_parameters())

    def __call__(self, drawn: Episode) -> Estimated:
        self.method.train()
        loss = self.method.loss(drawn)
        loss.backward()
        return Estimated(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        return {name: buffer.clone() for name, buffer in self.method.named_buffers()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, buffer in self.method.named_buffers():
                buffer.copy_(state[name])

    def __repr__(self) -> str:
        return f"Estimator(\n{self.said}\n{self.method!r}\n)"


class Evaluation(NamedTuple):
    """Accuracy on held-out episodes, in percent."""

    mean: float
    half_width: float  # of the 95 % interval of the mean: 1.96 standard errors over episodes
    episodes: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half_width:.2f} % ({self.episodes} episodes)"


def evaluate(method: Method, held_out: EpisodeSource, episodes: int = 600) -> Evaluation:
    """The share of right answers, mean and 95 % interval over so many held-out episodes (or up to T - 1 more).

    Args:
        method: trained.
        held_out: meta-batches of tasks whose classes were not trained on.
        episodes: 600 as in the papers.
    """
    method.eval()
    shares: list[Tensor] = []
    number = 0
    with torch.no_grad():
        while sum(map(len, shares)) < episodes:
            episode = held_out(number)
            scores = method.predict(episode.support_x, episode.support_y, episode.query_x)
            shares.append((scores.argmax(-1) == episode.query_y).double().mean(1))
            number += 1
    return summary(torch.cat(shares))


def summary(shares: Tensor) -> Evaluation:
    """Mean and interval of shares of right answers, one an episode."""
    every = 100 * shares
    return Evaluation(float(every.mean()), 1.96 * float(every.std()) / math.sqrt(len(every)), len(every))
