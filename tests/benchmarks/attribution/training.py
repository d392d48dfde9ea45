"""What is attributed: a transformer of two layers, of 64 or another width, on Python's help texts, in J AdamW steps.

    ell_j = mean over a batch of w_i · (mean loss of a character of window i),    w_i = 1

Windows are of 64 characters, of which 63 are predicted, so that the loss is the peer's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import gimli_core as gimli
from tests.benchmarks.models import Transformer

N, WINDOW, WIDTH, SYMBOLS = 160, 64, 64, 128  # 120,704 parameters at this width
LR, BETAS, EPS, DECAY = 1e-3, (0.95, 0.975), 1e-8, 0.01


@dataclass(frozen=True, eq=False)
class Training:
    """J steps on random batches, and k query windows."""

    net: Transformer
    steps: int
    windows: Tensor  # [N + k, WINDOW]
    rows: list[Tensor]  # of each step
    queries: int
    eps_root: float

    @property
    def theta_0(self) -> dict[str, Tensor]:
        return {k: v.detach() for k, v in self.net.named_parameters()}

    @property
    def asked(self) -> Tensor:
        return self.windows[N : N + self.queries]

    def batch(self, j: int) -> dict[str, Tensor]:
        return {"text": self.windows[self.rows[j]], "rows": self.rows[j]}

    def losses(self, theta: dict[str, Tensor], text: Tensor) -> Tensor:
        """[n] of windows [n, WINDOW]."""
        logits: Tensor = functional_call(self.net, theta, (text,))[:, :-1]
        return cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none").mean(1)

    def train_loss(self, theta: dict[str, Tensor], phi: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return (phi["w"] * self.losses(theta, batch["text"])).mean()

    def problem(self, query: int | None = None) -> gimli.Problem:
        """Of all queries, or of one."""

        def val_loss(theta: dict[str, Tensor], phi: Any, text: Tensor) -> Tensor:
            return self.losses(theta, text) if query is None else self.losses(theta, text[query : query + 1])[0]

        rule = gimli.optimizers.AdamW(lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, eps_root=self.eps_root)
        return gimli.Problem(self.train_loss, val_loss, rule, modules=[self.net])

    def scores(self, problem: gimli.Problem, **options: Any) -> Tensor:
        """dL/dw, [N] or [k, N]."""
        options = {"compile": False, **options}
        ones = gimli.indexed(torch.ones(N, dtype=next(self.net.parameters()).dtype))
        batches = [self.batch(j) for j in range(self.steps)]
        found = gimli.meta_gradient(problem, self.theta_0, batches, self.asked, phi_loss={"w": ones}, **options)
        dense: Tensor = found.A_loss["w"].to_dense()
        return dense


def training(
    steps: int,
    batch: int = 8,
    queries: int = 1,
    eps_root: float = 0.0,
    dtype: torch.dtype = torch.float32,
    width: int = WIDTH,
) -> Training:
    """The same for the same numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Transformer(width, SYMBOLS, WINDOW).to(dtype)
        rows = [torch.randperm(N)[:batch] for _ in range(steps)]
    text = torch.tensor([min(ord(c), SYMBOLS - 1) for c in "".join(topics.values())[: (N + queries) * WINDOW]])
    return Training(net, steps, text.reshape(-1, WINDOW), rows, queries, eps_root)
