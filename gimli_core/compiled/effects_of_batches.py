"""Whether what gives batches leaves alone what the losses read besides, and batches that it gave before: a run looks at
the former once, not at each step, and may ask for all of the latter first.

A function of j may set a temperature, put a module into another mode or write to a tensor, and an eager step then reads
what was set for it. What is compiled would go on with what the run began with (NOTE [one look a run] in
compiler/compiled_function.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.trial import copied, same_data
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
        try:
            with inputs.environment.trial():
                reason = change(compiled.look, inputs)
        except Uncompiled:  # as the run's own look will find
            return None
        if reason is not None:
            notice(f"not compiled: {reason}")
        if len(reasons) >= CODES:
            reasons.pop(next(iter(reasons)), None)
        reasons[key] = reason
    return reasons[key]


def change(look: Callable[[Inputs], Any], inputs: Inputs) -> ChangingBatches | None:
    """What asking for batches changes of what `look` finds. Cost: each batch, and a look for each. Raises Uncompiled,
    where nothing fits that was compiled.
    """
    values, form = inputs.values, inputs.form
    rows = None if values.rows is None else cache(values.rows)
    still = replace(
        inputs, values=replace(values, batch=cache(values.batch), val_batch=cache(values.val_batch), rows=rows)
    )
    look(still)  # asks for all batches that a look needs: later ones ask for none
    first_batch = still.values.batch(0)
    copy = copied(first_batch)
    asks: list[Callable[[], Any]] = [lambda: None, *(partial(values.batch, j) for j in range(form.steps))]
    asks += [partial(values.val_batch, j) for j, weighted in enumerate(form.weighted) if weighted]
    before: as_compiled | None = None
    for ask in asks:
        ask()
        try:
            with as_compiled() as seen:
                look(still)
        except Uncompiled:
            return ChangingBatches("to ask for a batch changes what the losses read besides their arguments")
        if before is not None and not seen.same_graphs(before):
            return ChangingBatches("to ask for a batch changes what the losses read besides their arguments")
        if before is not None and not seen.same_tensors(before):
            return ChangingBatches("to ask for a batch changes a tensor that the losses read besides their arguments")
        if not same_data(first_batch, copy):
            return ChangingBatches("to ask for a batch changes one that was given before")
        before = seen
    return None
