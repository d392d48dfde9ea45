"""Whether what gives batches leaves alone what the losses read besides: a run looks at that once, not at each step.

A function of j may set a temperature, put a module into another mode or write to a tensor, and an eager step then reads
what was set for it. What is compiled would go on with what the run began with (NOTE [one look a run] in
compiler/compiled_function.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.compiler.other_graphs import as_compiled
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.errors import notice
from gimli_core.problem import Memo

__all__ = ["ChangingBatches", "changing_batches"]

CODES = 64  # that are remembered of a problem: who makes a new function for each call has one code for all of them


class ChangingBatches(Uncompiled):
    """Why a run cannot go by what was compiled, whose batches are given so."""


def changing_batches(compiled: Any, inputs: Inputs) -> ChangingBatches | None:
    """Why a run cannot go by `compiled`, if what gives its batches changes what that reads besides its arguments.

    Found out once for a function's code, with a notice: every batch is asked for, and looked after.
    """
    if not any(inputs.form.given_by):
        return None
    memo: Memo = inputs.form.problem.memo
    reasons: dict[Any, ChangingBatches | None] = memo.changing
    key = (compiled, inputs.form.given_by)
    if key not in reasons:
        if len(reasons) >= CODES:
            reasons.pop(next(iter(reasons)), None)
        with inputs.environment.trial():
            reasons[key] = change(compiled.look, inputs)
        if (reason := reasons[key]) is not None:
            notice(f"not compiled: {reason}")
    return reasons[key]


def change(look: Callable[[Inputs], Any], inputs: Inputs) -> ChangingBatches | None:
    """What asking for batches changes of what `look` finds. Cost: each batch, and a look for each."""
    values, form = inputs.values, inputs.form
    rows = None if values.rows is None else cache(values.rows)
    still = replace(values, batch=cache(values.batch), val_batch=cache(values.val_batch), rows=rows)
    asks: list[Callable[[], Any]] = [lambda: None, *(partial(values.batch, j) for j in range(form.steps))]
    asks += [partial(values.val_batch, j) for j, weighted in enumerate(form.weighted) if weighted]
    before: list[tuple[Tensor, int]] | None = None
    for ask in asks:
        ask()
        try:
            with as_compiled() as graphs:
                look(replace(inputs, values=still))  # the first one has asked for all that it needs
        except Uncompiled:
            return ChangingBatches("to ask for a batch changes what the losses read besides their arguments")
        if before is not None and not same_versions(before, graphs.besides):
            return ChangingBatches("to ask for a batch changes a tensor that the losses read besides their arguments")
        before = graphs.besides
    return None


def same_versions(some: Sequence[tuple[Tensor, int]], others: Sequence[tuple[Tensor, int]]) -> bool:
    """Whether both are the same tensors, of any shapes, none of them written to in between."""
    pairs = zip(some, others, strict=False)
    return len(some) == len(others) and all(a is b and i == j for (a, i), (b, j) in pairs)
