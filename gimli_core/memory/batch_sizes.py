"""A budget is measured on the first batch: no later one may be larger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import unexpected
from gimli_core.memory.schedules.budget import Budget
from gimli_core.trees import tensors

__all__ = ["no_larger_batches"]


def no_larger_batches(budget: Budget, inputs: Inputs) -> Inputs:
    """The inputs; a batch of theirs that is larger than the measured one in any dimension raises, before its step."""
    batch = inputs.values.batch
    measured = [(t.shape, t.itemsize) for t in tensors(batch(0))]

    def checked(j: int) -> Any:
        now = batch(j)
        sizes = [(t.shape, t.itemsize) for t in tensors(now)]
        alike = [len(s) for s, _ in sizes] == [len(s) for s, _ in measured]
        pairs = zip(sizes, measured, strict=False)
        if not alike or any(m > n or any(a > b for a, b in zip(s, r, strict=True)) for (s, m), (r, n) in pairs):
            shapes = [[list(shape) for shape, _ in of_batch] for of_batch in (measured, sizes)]
            expected = f"tensors no larger than those of the first batch, which was measured: shapes {shapes[0]}"
            actual = f"shapes {shapes[1]} at inner step j = {j}"
            do = "Let the largest batch come first, pad or cut the batches to one size, or say memory=Checkpoint(…)."
            raise unexpected(f"train_batches under Budget({budget.size!r})", expected, actual, do)
        return now

    return replace(inputs, values=replace(inputs.values, batch=checked))
