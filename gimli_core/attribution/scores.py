"""Scores of examples: the derivative of each query's loss, through the whole training, by each example's weight."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import prepare
from gimli_core.attribution.weights import by_name, indexed_entry, query_losses
from gimli_core.derivatives.beside_loss import value_and_aux
from gimli_core.errors import first_line, unexpected
from gimli_core.memory.atomic_file import check_writable, writing
from gimli_core.meta_gradient import meta_gradient
from gimli_core.problem import Problem
from gimli_core.runs.plain_values import fingerprint

__all__ = ["Scores", "scores"]


@dataclass(frozen=True, eq=False)
class Scores:
    """dL_q/dw_i of queries q and examples i: below zero, the example helped the query; above, it hurt."""

    values: Tensor  # [k, N], or [k, N, …] of weights [N, …]
    val_loss: Tensor  # [k]
    digest: str = ""  # of what the run started from
    rows: Tensor | None = None  # [N]: where each example stands in the data that it was drawn from

    def __repr__(self) -> str:
        k, *weights = self.values.shape
        least, most = float(self.values.min()), float(self.values.max())
        return f"Scores({k} queries, weights {weights}, from {least:.3g} to {most:.3g})"

    def save(self, path: str | Path) -> None:
        """Write an `.npz` of `scores`, `val_loss`, `digest`, and `rows` where they are known, whole or not at all.
        Raises ArgumentError.
        """
        arrays = {"scores": self.values, "val_loss": self.val_loss}
        if self.rows is not None:
            arrays["rows"] = self.rows
        numbers: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}
        with writing("path", path) as file:
            np.savez(file, **numbers, digest=np.array(self.digest))

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """What `save` wrote. Raises ArgumentError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                values, val_loss = (torch.from_numpy(file[name]) for name in ("scores", "val_loss"))
                digest = str(file["digest"])
                rows = torch.from_numpy(file["rows"]) if "rows" in file else None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, TypeError, EOFError) as error:
            do = "Name a file that Scores.save wrote."
            raise unexpected(f"scores {str(path)!r}", "an .npz of scores", first_line(error), do) from None
        if values.ndim < 2 or val_loss.shape != values.shape[:1]:
            actual = f"scores {list(values.shape)} and val_loss {list(val_loss.shape)}"
            raise unexpected(f"scores {str(path)!r}", "[k, N] and [k]", actual, "Name a file that Scores.save wrote.")
        return cls(values, val_loss, digest, rows)


def scores(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    phi_loss: Mapping[str, Any],
    entry: str | None = None,
    at_once: int | None = None,
    resume: str | Path | None = None,
    told: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Scores:
    """What each training example did to each query: the exact derivative through training by the examples' weights.

        scores[q, i] = dL_q(theta_J) / dw_i,      ell_j = loss(theta_j, {"w": w[rows_j]}, batch_j),   q = 0 … k-1

    Without example i, L_q changes by about -w_i scores[q, i]: a negative score is of an example that helped.

    Args:
        problem: its `val_loss` returns a number for each query, `[k]`.
        phi_loss: with an entry marked by `gimli.indexed`, `[N, …]`: weights of examples, or of their tokens.
        entry: the entry's name, where several are indexed; within dicts with dots, "data.w".
        at_once: how many queries a sweep takes; all of them by default. Fewer need less memory.
        resume: an `.npz` that is written whole after each sweep, and from which a later call goes on by query. At the
            end it holds the scores. The losses' code, and batches after the first, are not told apart.
        told: called with (queries done, k) after each sweep.
        theta_0, train_batches, val_batch and `options`: as in `meta_gradient`.

    Returns:
        Scores: `.values` `[k, N, …]`, `.val_loss` `[k]`, `.save(path)`.

    Raises:
        ArgumentError: no indexed entry; a file of other scores; and what `meta_gradient` raises, before any work.

    Cost: k / at_once forward unrolls and sets of graphs, and k sweeps (6F a step each); kN numbers.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (phi["w"] * (theta["a"] - batch["x"]) ** 2).sum() / 2
    >>> def queries(theta, phi, targets):
    ...     return (theta["a"] - targets) ** 2 / 2
    >>> problem = gimli.Problem(loss, queries, gimli.optimizers.SGD(lr=0.5))
    >>> batches = [{"x": torch.tensor([1.0, -1.0]), "rows": torch.tensor([0, 2])}]
    >>> w = gimli.indexed(torch.ones(3))
    >>> theta_0, targets = {"a": torch.zeros(())}, torch.tensor([1.0, -1.0])
    >>> gimli.attribution.scores(problem, theta_0, batches, targets, phi_loss={"w": w}).values
    tensor([[-0.5000,  0.0000,  0.5000],
            [ 0.5000,  0.0000, -0.5000]])

    Source: Engstrom et al. 2025, Optimizing ML Training with Metagradient Descent; Ilyas and Engstrom 2025, MAGIC.
    """
    problem, phi_loss, _ = by_name(problem, phi_loss)
    name, mark = indexed_entry(phi_loss, entry)
    if at_once is not None and (isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1):
        raise unexpected("at_once", "a whole number of queries >= 1", repr(at_once), "None takes all at once.")
    call = {"theta_0": theta_0, "train_batches": train_batches, "val_batch": val_batch, "phi_loss": phi_loss, **options}
    inputs = prepare(Call(problem, **{k: v for k, v in call.items() if k not in ("watch", "progress")}))
    k = len(query_losses(problem, theta_0, phi_loss, val_batch, inputs.form.steps))
    digest = fingerprint(inputs)
    values, val_loss = _rows_done(resume, digest, (k, *mark.value.shape))
    for first in range(len(values), k, at_once or k):
        rows = slice(first, min(first + (at_once or k), k))
        result = meta_gradient(_of_rows(problem, rows), **call)
        A = result.A_loss[name].to_dense()
        values = torch.cat([values.to(A), A.reshape(-1, *mark.value.shape)])
        val_loss = torch.cat([val_loss.to(result.val_loss), result.val_loss.reshape(-1)])
        if resume is not None:
            Scores(values, val_loss, digest).save(resume)
        if told is not None:
            told(len(values), k)
    return Scores(values, val_loss, digest)


def _of_rows(problem: Problem, rows: slice) -> Problem:
    """The problem of some of its queries."""

    @functools.wraps(problem.val_loss)
    def val_loss(*arguments: Any, **options: Any) -> Tensor:
        losses, _ = value_and_aux(problem.val_loss(*arguments, **options), "val_loss")
        some: Tensor = losses.reshape(-1)[rows]
        return some

    return Problem(problem.train_loss, val_loss, problem.optimizer, problem.modules)


def _rows_done(path: str | Path | None, digest: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Scores and losses of the queries that a file holds; of none where there is no file."""
    if path is None or not Path(path).exists():
        if path is not None:
            check_writable("resume", path)
        return torch.empty(0, *shape[1:]), torch.empty(0)
    done = Scores.load(path)
    if done.digest != digest or done.values.shape[1:] != shape[1:] or len(done.values) > shape[0]:
        do = "Name another file, or remove that one."
        raise unexpected(f"resume {str(path)!r}", "scores of this very call", "scores of another", do)
    return done.values, done.val_loss
