"""Whether what gives batches leaves alone what the losses read besides: a run looks at that once, not at each step.

A function of j may set a temperature, put a module into another mode or write to a tensor, and an eager step then reads
what was set for it. What is compiled would go on with what the run began with (NOTE [one look a run] in
compiler/compiled_function.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.compiler.other_graphs import as_compiled
from gimli_core.compiled.compiler.trial import Uncompiled

__all__ = ["refuse_changing_batches"]


def refuse_changing_batches(look: Callable[[Inputs], Any], inputs: Inputs) -> None:
    """Raise Uncompiled if what `look` finds depends on which batch was asked for last: the first, the last, or L_val's.

    Cost: four looks, and three batches.
    """
    values = inputs.values
    rows = None if values.rows is None else cache(values.rows)
    still = replace(values, batch=cache(values.batch), val_batch=cache(values.val_batch), rows=rows)
    last = max(inputs.form.steps - 1, 0)
    read = []
    for ask in (lambda: None, lambda: values.batch(0), lambda: values.batch(last), lambda: values.last_val_batch):
        ask()
        try:
            with as_compiled() as graphs:
                look(replace(inputs, values=still))  # the first one has asked for all that it needs
        except Uncompiled as reason:
            raise Uncompiled("to ask for a batch changes what the losses read besides their arguments") from reason
        read.append(graphs.besides)  # which keeps them, so that no identity is used twice
    if len({tuple((id(x), version) for x, version in besides) for besides in read}) > 1:
        raise Uncompiled("to ask for a batch changes a tensor that the losses read besides their arguments")
