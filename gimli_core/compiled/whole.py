"""All of Algorithm 1 for a short inner loop, compiled as one function.

Worth it where a step is so small that calling it costs more than computing it; compiling takes longer with every
step (about 20 s for 5 steps of a small network). Cost: 9F a step; memory as `RetainGraphs`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gimli_core.compiled.functions import Whole, whole
from gimli_core.compiled.kernel import Kernel
from gimli_core.compiled.steps import bound, fixed_of, options_of, start
from gimli_core.inputs import Inputs
from gimli_core.record import Event

__all__ = ["CompiledWhole", "is_small", "pattern"]

# What is compiled whole unasked: few steps, and few numbers in each.
STEPS, NUMBERS = 8, 2**18


def is_small(inputs: Inputs) -> bool:
    """Whether a run is small enough to be compiled whole."""
    packed = pytree.tree_leaves(inputs.optimizer.pack(inputs.theta_0))
    return inputs.steps <= STEPS and sum(v.numel() for v in packed) <= NUMBERS


class CompiledWhole:
    """Lines 4-14 of one problem as one compiled function. Raises Uncompiled, with the reason."""

    def __init__(self, inputs: Inputs) -> None:
        arguments = arguments_of(inputs)
        function = bound(whole, fixed_of(inputs), pattern(inputs))
        self._kernel = Kernel(
            "the whole run", function, inputs.environment, arguments, arguments[-2:], **options_of(inputs)
        )
        self.seconds = self._kernel.seconds

    def run(self, inputs: Inputs) -> Generator[Event, None, Whole | None]:
        """The whole run, told at its end; None where something is not finite: an eager run then names what broke."""
        arguments = arguments_of(inputs)
        self._kernel.begin()
        packed, sound = self._kernel(arguments[-2:], *arguments)
        if not sound.item():
            return None
        unpack = inputs.optimizer.unpack
        done: Whole = packed._replace(B=unpack(packed.B), theta=unpack(packed.theta))
        yield Event(14, 0, {"B": done.B, "S": done.S})
        return done


def pattern(inputs: Inputs) -> tuple[bool, ...]:
    """Where L_val has a weight, from theta_0 to theta_J."""
    return tuple(w is not None for w in inputs.weights)


def arguments_of(inputs: Inputs) -> tuple[Any, ...]:
    """The tensors of a run; the last two are what may have another form in another call."""
    point, J, optimizer = start(inputs), inputs.steps, inputs.optimizer
    hypers = [optimizer.pack_hyper(inputs.hyper.at(j)) for j in range(1 if inputs.hyper.constant else J)]
    batches = [inputs.batch(j) for j in range(J)]
    weights = torch.tensor([0.0 if w is None else w * inputs.scale for w in inputs.weights], dtype=torch.float64)
    theta = optimizer.pack(point.theta)
    return theta, point.state, inputs.phi_loss, inputs.frozen, hypers, weights, batches, inputs.val_batch
