"""Entries of phi_loss with a row for each example, of which a step's loss is handed those of its batch.

    ell_j(theta, phi_loss, batch_j) = loss(theta, {…, "w": w[rows_j]}, batch_j)

A step then computes with w[rows_j] alone, and its increment of A_loss (line 13) is a row for each of rows_j. Their sum
is kept as rows and values, and handed back as a coalesced sparse tensor: rows that come again add. No vector of length
N is made, neither in a step nor at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.derivatives.micro_batches import MicroBatches, dim_of_examples
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.marks import Mark
from gimli_core.notation import Tensors

__all__ = ["Indexed", "LastBatch", "Rows", "SparseSum", "indexed", "rows_of"]

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class Indexed(Mark):
    """A value with a row for each example; made by `indexed`."""

    rows: Any = "rows"


def indexed(value: Tensor, rows: str | int | Callable[[Any], Tensor] = "rows") -> Indexed:
    """Mark an entry of phi_loss as one row for each example (or token), used by `train_loss` alone.

    `train_loss` is handed the rows of its batch in the entry's place, `w[rows]`; `val_loss` does not see it. The
    entry's derivative in `A_loss` is a coalesced `torch.sparse_coo` tensor of its shape (`.to_dense()` makes it one
    number an example); with `unroll` its `.grad` is dense.

    Args:
        value: `[N, …]`; all tasks of a meta-batch share it.
        rows: where a batch carries its rows, whole numbers in [0, N), [n], or [T, n] of T tasks: a key of the batch,
            or a function of it.

    Raises:
        ArgumentError: something else than a tensor with rows; at a call: rows out of range, or of another kind.

    Cost: a step's time and memory do not depend on N.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (phi["w"] * (theta["a"] - batch["x"]) ** 2).mean()
    >>> problem = gimli.Problem(loss, lambda theta, phi, batch: theta["a"], gimli.optimizers.SGD(lr=1.0))
    >>> batches = [{"x": torch.ones(2), "rows": torch.tensor([0, 3])}]
    >>> phi_loss = {"w": gimli.indexed(torch.ones(5))}
    >>> result = gimli.meta_gradient(problem, {"a": torch.zeros(())}, batches, None, phi_loss=phi_loss)
    >>> result.A_loss["w"].to_dense()             # theta_1 = mean of w, over the batch, times 2
    tensor([1., 0., 0., 1., 0.])
    """
    if not isinstance(value, Tensor) or value.ndim == 0:
        actual = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise unexpected("indexed(value)", "a tensor [N, …] with a row for each example", actual, "Stack them.")
    if not isinstance(rows, (str, int)) and not callable(rows):
        do = 'For example rows="index", or rows=lambda batch: batch[2].'
        raise unexpected("indexed(rows)", "a key of the batch, or a function of it", repr(rows), do)
    return Indexed(value, rows)


class Rows(NamedTuple):
    """The rows of one entry that a batch carries: of each of its parts a tensor of whole numbers, [n], or [T, n]."""

    parts: list[Tensor]
    dim: int  # of the examples

    def joined(self) -> Tensor:
        """Those of all parts."""
        return torch.cat(self.parts, self.dim) if len(self.parts) > 1 else self.parts[0]

    def spans(self) -> list[tuple[int, int]]:
        """Where each part's stand among those of all."""
        stops = list(accumulate(rows.shape[self.dim] for rows in self.parts))
        return list(zip([0, *stops[:-1]], stops, strict=True))


def rows_of(entries: Mapping[str, Indexed], batch: Any, j: int, tasks: int | None = None) -> dict[str, Rows]:
    """The rows of each entry that a batch carries, a tensor for each of its parts. Raises ArgumentError."""
    parts, dim = batch.parts if isinstance(batch, MicroBatches) else (batch,), dim_of_examples(tasks)
    return {name: Rows([_rows(name, entry, part, j, tasks) for part in parts], dim) for name, entry in entries.items()}


def _rows(name: str, entry: Indexed, batch: Any, j: int, tasks: int | None) -> Tensor:
    where = f"the rows of phi_loss[{name!r}] at inner step j = {j}"
    try:
        rows = entry.rows(batch) if callable(entry.rows) else batch[entry.rows]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        actual = f"{type(error).__name__}: {error}"
        do = "Let every batch carry the rows that it uses, or say where they are: gimli.indexed(…, rows=key)."
        raise unexpected(where, f"a batch that has them under {entry.rows!r}", actual, do) from error
    N = len(entry.value)
    if not isinstance(rows, Tensor) or rows.ndim == 0 or rows.dtype not in INTEGERS or rows.layout != torch.strided:
        actual = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        actual += f", {rows.layout}" if isinstance(rows, Tensor) and rows.layout != torch.strided else ""
        raise unexpected(where, "a dense tensor of whole numbers, [n]", actual, "Give the numbers of the examples.")
    if tasks is not None and rows.shape[:1] != (tasks,):
        expected = f"a tensor with a leading dimension of {tasks} tasks"
        raise unexpected(where, expected, f"shape {list(rows.shape)}", "Stack one a task.")
    if rows.is_meta:
        do = "Make the batches on the device of the rest."
        raise unexpected(where, "a tensor that holds values", "one on the meta device", do)
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= N):
        actual = f"{int(rows.min())} to {int(rows.max())}"
        raise unexpected(where, f"numbers in [0, {N})", actual, "They count from 0, and not from the end.")
    return rows.long()


class LastBatch:
    """batch_j, asked for once where it is needed several times in a row."""

    def __init__(self, batches: Callable[[int], Any]) -> None:
        self._batches = batches
        self._last: tuple[int, Any] | None = None

    def __call__(self, j: int) -> Any:
        last = self._last
        if last is None or last[0] != j:
            self._last = last = j, self._batches(j)
        return last[1]


class SparseSum:
    """A sum of rows: what is added stays as it came until the total is asked for; in float32 at least."""

    def __init__(self, like: Tensor) -> None:
        self._shape, self._device = like.shape, like.device
        self._dtype = torch.promote_types(like.dtype, torch.float32)
        self._rows: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add `values`, [*rows, …], to the rows."""
        self._rows.append(rows.reshape(-1))
        self._values.append(values.reshape(-1, *self._shape[1:]).to(self._dtype))

    def parts(self) -> Tensors:
        """Rows and values so far."""
        rows = [*self._rows, torch.empty(0, dtype=torch.long, device=self._device)]
        values = [*self._values, torch.empty(0, *self._shape[1:], dtype=self._dtype, device=self._device)]
        return {"rows": torch.cat(rows), "values": torch.cat(values)}

    def total(self) -> Tensor:
        """The sum, sparse in its rows."""
        rows, values = self.parts().values()
        summed: Tensor = torch.sparse_coo_tensor(rows[None], values, self._shape, check_invariants=True).coalesce()
        return summed
