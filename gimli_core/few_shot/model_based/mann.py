"""MANN: Santoro, Bartunov, Botvinick, Wierstra & Lillicrap 2016, "… memory-augmented neural networks"."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot, softplus

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.method import Method

__all__ = ["Mann"]


class Carried(NamedTuple):
    """What is carried from row to row, of B sequences."""

    h: Tensor  # [B, hidden], the controller's
    c: Tensor
    memory: Tensor  # [B, slots, width]
    w_read: Tensor  # [B, reads, slots]
    w_used: Tensor  # [B, slots]


class Mann(Method):
    """Rows come one at a time with the label of the row before; a memory keeps what was seen until its label comes.

    Least recently used access writes each key to the slot read last or to one that is used least:

        w_write = sigmoid(α)·w_read' + (1 - sigmoid(α))·w_least_used',   M = M' + w_writeᵀ k,   the slot emptied first
        w_read = softmax(β·cosine(k, M)),   w_used = γ·w_used' + Σ w_read + Σ w_write

    The paper has β = 1 and pixels in place of an embedding; a learned β (as in the neural Turing machine) and four
    convolutions learn in far fewer episodes.

    Args:
        embedding: of one picture, [n, …] to [n, features].
        features: how many numbers it gives.
        way: classes of a task.
        hidden, slots, width, reads, decay: 200, 128, 40, 4 and γ = 0.99 in the paper.
    """

    def __init__(
        self,
        embedding: nn.Module,
        features: int,
        way: int,
        *,
        hidden: int = 200,
        slots: int = 128,
        width: int = 40,
        reads: int = 4,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.embedding, self.way, self.decay = embedding, way, decay
        self.slots, self.width, self.reads = slots, width, reads
        self.controller = nn.LSTMCell(features + way, hidden)
        self.key, self.gate = nn.Linear(hidden, reads * width), nn.Linear(hidden, reads)
        self.strength = nn.Linear(hidden, reads)
        self.answer = nn.Linear(hidden + reads * width, way)

    def loss(self, episode: Episode) -> Tensor:
        logits, y = self.sequence(episode)
        return cross_entropy(logits.flatten(0, 1), y.flatten())

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        tasks, queries = query_x.shape[:2]
        shown, asked = self._embedded(support_x), self._embedded(query_x)
        carried, _ = self._through(shown, one_hot(support_y, self.way).to(shown.dtype))
        carried = Carried(*(part.repeat_interleave(queries, 0) for part in carried))
        last = one_hot(support_y[:, -1:], self.way).to(shown.dtype).expand(-1, queries, -1)
        _, logits = self._step(carried, asked.flatten(0, 1), last.flatten(0, 1))
        return logits.view(tasks, queries, self.way)

    def sequence(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """(logits [T, n, way], labels [T, n]) of all rows of an episode, in an order by the episode's number."""
        x, y = torch.cat([episode.support_x, episode.query_x], 1), torch.cat([episode.support_y, episode.query_y], 1)
        generator = torch.Generator().manual_seed(episode.number)
        order = torch.stack([torch.randperm(y.shape[1], generator=generator) for _ in y])
        tasks, order = torch.arange(len(y), device=y.device)[:, None], order.to(y.device)
        x, y = x[tasks, order], y[tasks, order]
        shown = self._embedded(x)
        return self._through(shown, one_hot(y, self.way).to(shown.dtype))[1], y

    def by_instance(self, episode: Episode) -> list[float]:
        """The share of right answers, in percent, at a class's first row, its second, …: the first is by chance."""
        with torch.no_grad():
            logits, y = self.sequence(episode)
        seen = one_hot(y, self.way).cumsum(1).gather(-1, y[..., None]).squeeze(-1)
        right = (logits.argmax(-1) == y).double()
        return [100 * float(right[seen == instance].mean()) for instance in range(1, int(seen.max()) + 1)]

    def _embedded(self, x: Tensor) -> Tensor:
        out: Tensor = self.embedding(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return out

    def _through(self, rows: Tensor, labels: Tensor) -> tuple[Carried, Tensor]:
        """Rows [B, n, features], each with the label of the one before; what is held at the end, and logits."""
        carried, before, logits = self._empty(rows), torch.zeros_like(labels[:, 0]), []
        for row, label in zip(rows.unbind(1), labels.unbind(1), strict=True):
            carried, answer = self._step(carried, row, before)
            logits.append(answer)
            before = label
        return carried, torch.stack(logits, 1)

    def _empty(self, rows: Tensor) -> Carried:
        def zeros(*shape: int) -> Tensor:
            return rows.new_zeros(len(rows), *shape)

        hidden = self.controller.hidden_size
        memory = zeros(self.slots, self.width) + 1e-6
        return Carried(zeros(hidden), zeros(hidden), memory, zeros(self.reads, self.slots), zeros(self.slots))

    def _step(self, carried: Carried, row: Tensor, label_before: Tensor) -> tuple[Carried, Tensor]:
        h, c = self.controller(torch.cat([row, label_before], -1), (carried.h, carried.c))
        k = torch.tanh(self.key(h)).unflatten(-1, (self.reads, self.width))
        gate = torch.sigmoid(self.gate(h))[..., None]
        least: Any = one_hot(carried.w_used.topk(self.reads, largest=False).indices, self.slots).to(h.dtype)
        w_write = gate * carried.w_read + (1 - gate) * least
        memory = carried.memory * (1 - least.amax(1))[..., None] + w_write.mT @ k
        strength = (1 + softplus(self.strength(h)))[..., None]
        w_read = torch.softmax(strength * (normalize(k, dim=-1) @ normalize(memory, dim=-1).mT), -1)
        w_used = self.decay * carried.w_used + (w_read + w_write).sum(1)
        logits = self.answer(torch.cat([h, (w_read @ memory).flatten(1)], -1))
        return Carried(h, c, memory, w_read, w_used.detach()), logits
