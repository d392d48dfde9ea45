"""Do scores predict? Random subsets are left out, the model trained again, and predictions held against what came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimli_core.attribution.scores import Scores
from gimli_core.attribution.weights import by_name, indexed_entry, query_losses
from gimli_core.errors import unexpected
from gimli_core.evaluation.adapt import adapt
from gimli_core.problem import Problem

__all__ = ["LeaveOut", "leave_out"]

RESAMPLES = 200  # of the subsets, for the interval


@dataclass(frozen=True, eq=False)
class LeaveOut:
    """Subsets that were left out, and by how much each query's loss changed."""

    left_out: Tensor  # [M, N] bool
    changes: Tensor  # [M, k], L_q without the subset less L_q with it
    weights: Tensor  # [N, …], of the examples

    def predicted(self, scores: Scores) -> Tensor:
        """[M, k]: -Σ w_i scores[q, i] over the examples i that were left out. Raises ArgumentError."""
        k = self.changes.shape[1]
        if tuple(scores.values.shape) != (k, *self.weights.shape):
            actual = f"{list(scores.values.shape)}"
            do = "Score the queries and examples that were retrained for."
            raise unexpected("scores", f"[k, N, …] = {[k, *self.weights.shape]}", actual, do)
        of_example = (scores.values.double() * self.weights.double()).reshape(k, len(self.weights), -1).sum(2)
        return -self.left_out.double() @ of_example.T

    def lds(self, scores: Scores) -> Tensor:
        """[k]: Spearman's rank correlation, over the subsets, of what was predicted and what came. Needs scipy.

        nan where all predictions, or all changes, of a query are alike. Source: Park et al. 2023, TRAK (the linear
        datamodelling score).
        """
        return torch.as_tensor(_spearman(self.predicted(scores).numpy(), self.changes.double().numpy()))

    def interval(self, scores: Scores, seed: int = 0) -> tuple[float, float]:
        """A 95 % interval of the mean LDS over the queries: a bootstrap over the subsets. Needs scipy."""
        predicted, changes = self.predicted(scores).numpy(), self.changes.double().numpy()
        rng = np.random.default_rng(seed)
        draws = rng.integers(len(changes), size=(RESAMPLES, len(changes)))
        low, high = np.percentile(_spearman(predicted[draws], changes[draws]).mean(1), [2.5, 97.5])
        return float(low), float(high)


def leave_out(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    phi_loss: Mapping[str, Any],
    entry: str | None = None,
    subsets: int = 60,
    share: float = 0.1,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
    **options: Any,
) -> LeaveOut:
    """Train once with all examples and once without each of M random subsets (their weights at 0, all else the same).

        changes[m, q] = L_q(theta_J without subset m) - L_q(theta_J)

    Args:
        subsets: M, at least 2.
        share: of the N examples, left out each time; in (0, 1).
        seed: of the subsets.
        told: called with (trainings done, M + 1) after each.
        the others as in `scores`; `options` as in `adapt` (steps, phi_opt, state_0).

    Returns:
        LeaveOut: `.changes` `[M, k]`, `.lds(scores)` `[k]`, `.interval(scores)`.

    Raises:
        ArgumentError: before any work. NotFiniteError: a training without some subset diverged.

    Cost: M + 1 trainings, 3F a step each, in the memory of one step.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (phi["w"] * (theta["a"] - batch["x"]) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, lambda theta, phi, y: (theta["a"] - y) ** 2, gimli.optimizers.SGD(lr=0.05))
    >>> x, y = torch.linspace(-1, 2, 8), torch.tensor([1.0, -1.0])
    >>> call = dict(theta_0={"a": torch.zeros(())}, train_batches=[{"x": x, "rows": torch.arange(8)}] * 3, val_batch=y)
    >>> phi_loss = {"w": gimli.indexed(torch.ones(8))}
    >>> trial = gimli.attribution.leave_out(problem, **call, phi_loss=phi_loss, subsets=20, share=0.25)
    >>> bool((trial.lds(gimli.attribution.scores(problem, **call, phi_loss=phi_loss)) > 0.9).all())
    True
    """
    problem, phi_loss, _ = by_name(problem, phi_loss)
    name, mark = indexed_entry(phi_loss, entry)
    N = len(mark.value)
    if isinstance(subsets, bool) or not isinstance(subsets, int) or subsets < 2:
        raise unexpected("subsets", "a whole number >= 2", repr(subsets), "60 give a spread of a few hundredths.")
    if not isinstance(share, (int, float)) or not 0 < share < 1 or not 1 <= round(share * N) < N:
        raise unexpected("share", f"a share in (0, 1) of {N} examples, one at least", repr(share), "Try 0.1.")
    generator = torch.Generator().manual_seed(seed)
    left_out = torch.zeros(subsets, N, dtype=torch.bool)
    for row in left_out:
        row[torch.randperm(N, generator=generator)[: round(share * N)]] = True
    weights = mark.value.detach()

    def losses(without: Tensor) -> Tensor:
        kept = weights.clone()
        kept[without.to(kept.device)] = 0
        phi = {**phi_loss, name: replace(mark, value=kept)}
        ended = adapt(problem, theta_0, train_batches, phi_loss=phi, **options)
        return query_losses(problem, ended.theta_J, phi, val_batch, len(ended.train_losses)).cpu()

    rows = []
    for m, without in enumerate([torch.zeros(N, dtype=torch.bool), *left_out]):
        rows.append(losses(without))
        if told is not None:
            told(m + 1, subsets + 1)
    return LeaveOut(left_out, torch.stack(rows[1:]) - rows[0], weights.cpu())


def _spearman(predicted: Any, changes: Any) -> Any:
    """[…, k]: rank correlations over M of […, M, k], ties at their mean rank; nan for a constant column."""
    from scipy.stats import rankdata  # only here is scipy needed

    a, b = (rankdata(x, axis=-2) for x in (predicted, changes))
    a, b = a - a.mean(-2, keepdims=True), b - b.mean(-2, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-2) / np.sqrt((a * a).sum(-2) * (b * b).sum(-2))
