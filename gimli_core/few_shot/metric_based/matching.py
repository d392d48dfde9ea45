"""Matching networks: Vinyals et al. 2016, "Matching networks for one shot learning"."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.method import Method
from gimli_core.few_shot.metric_based.embedding import embedded

__all__ = ["ContextOfQueries", "ContextOfSupport", "Matching"]


class Matching(Method):
    """Attention over the support: P(y | x, S) = Σ_i a(x, x_i) y_i,  a = softmax_i(β·cosine(f(x), g(x_i))).

    The paper has β = 1. A softmax of cosines can hardly be sure then: of 5 classes none gets more than 0.65, of 60 no
    more than 0.11, and the loss pulls at pairs that are right already. No inner loop: J = 0 of Algorithm 1.

    Args:
        embedding: of single pictures.
        features: of the embedding, for the contexts; None leaves them out (f = g = embedding). Then g reads the
            support with a bidirectional LSTM, and f each query with `reads` attentive steps over the support.
        reads: K.
        sharpness: where a learned β starts; None for 1, and not learned.
    """

    def __init__(
        self, embedding: nn.Module, features: int | None = None, reads: int = 5, sharpness: float | None = None
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.log_beta = None if sharpness is None else nn.Parameter(torch.tensor(sharpness).log())
        self.g = None if features is None else ContextOfSupport(features)
        self.f = None if features is None else ContextOfQueries(features, reads)

    def loss(self, episode: Episode) -> Tensor:
        shares = self.predict(episode.support_x, episode.support_y, episode.query_x)
        return -shares.gather(-1, episode.query_y[..., None]).clamp_min(1e-12).log().mean()

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        shown, asked = embedded(self.embedding, support_x, query_x)
        if self.g is not None and self.f is not None:
            shown = self.g(shown)
            asked = self.f(asked, shown)
        cosines = normalize(asked, dim=-1) @ normalize(shown, dim=-1).mT
        attention = torch.softmax(cosines if self.log_beta is None else self.log_beta.exp() * cosines, -1)
        return attention @ one_hot(support_y).to(attention.dtype)


class ContextOfSupport(nn.Module):
    """g(x_i, S) = forward hidden state + backward hidden state + x_i of an LSTM over the support."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, features, bidirectional=True, batch_first=True)

    def forward(self, shown: Tensor) -> Tensor:
        forwards, backwards = self.lstm(shown)[0].chunk(2, -1)
        context: Tensor = shown + forwards + backwards
        return context


class ContextOfQueries(nn.Module):
    """f(x, S): K steps of an LSTM that reads the support by attention.

    h^_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1}),   h_k = h^_k + f'(x),   r_k = Σ_i softmax_i(h_kᵀ g_i) g_i
    """

    def __init__(self, features: int, reads: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2 * features, features)
        self.reads = reads

    def forward(self, asked: Tensor, shown: Tensor) -> Tensor:
        flat = asked.flatten(0, 1)
        h, c = flat, torch.zeros_like(flat)
        for _ in range(self.reads):
            by_task = h.view_as(asked)
            read = (torch.softmax(by_task @ shown.mT, -1) @ shown).flatten(0, 1)
            # An LSTM cell has one size of hidden state: the read vector enters beside the input.
            hidden, c = self.cell(torch.cat([flat, read], -1), (h, c))
            h = hidden + flat
        return h.view_as(asked)
