"""How large a run is to the compiler: its operations.

NOTE [what a whole run takes to compile]
About in proportion to its operations. On two cores, in processor time, when nothing is on the disk:

    sinusoid, 5 steps: 211 operations a step, 1055 in all       37 s
    four convolutions of 32, 8 tasks, 5 steps: 1042, 5210       over 240 s, not ended

So a run of more than `OPERATIONS` is compiled as single steps, unless "whole" is asked for.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.compiler.collector import young_alone
from gimli_core.compiled.pure_steps import Along, sweep
from gimli_core.compiled.steps import fixed_of

__all__ = ["is_small"]

# What is compiled whole unasked: few operations in all, and few numbers in each.
OPERATIONS, NUMBERS = 1600, 2**18
LEAST = 20  # operations that a step has at least: of a run with too many steps none is counted


def is_small(inputs: Inputs) -> bool:
    """Whether a run is small enough to be compiled whole: NOTE [what a whole run takes to compile].

    Its operations are counted once for a problem and its shapes, by one step in eager mode.
    """
    J, memo = inputs.form.steps, inputs.form.problem.memo
    if J * LEAST > OPERATIONS or sum(v.numel() for v in inputs.values.theta_0.values()) > NUMBERS:
        return False
    wanted = inputs.signature()
    count = memo.operations.get(wanted)
    if count is None:
        with young_alone():  # torch imports its compiler for it
            count = operations_of_step(inputs)
        memo.operations.put(wanted, count)
    return count * J <= OPERATIONS


def operations_of_step(inputs: Inputs) -> int:
    """How many operations of torch one step and its sweep take. Leaves no trace; a step that fails has none."""
    form, values, mode = inputs.form, inputs.values, _Counting()
    B = {k: torch.zeros_like(v) for k, v in values.theta_0.items()}
    arguments = (values.theta_0, values.state_0, values.phi_loss, values.frozen, values.hyper.at(0), values.batch(0))
    with inputs.environment.trial(), torch.no_grad(), contextlib.suppress(Exception), mode:
        sweep(fixed_of(inputs), *arguments, Along(B, form.optimizer.zero_adjoint(values.state_0)))
    return mode.count


class _Counting(TorchDispatchMode):
    """Counts the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))
