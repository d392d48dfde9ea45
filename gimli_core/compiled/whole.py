"""All of Algorithm 1 for a short inner loop, compiled as one function, from the arguments to the result's tensors.

Worth it where a step is so small that calling it costs more than computing it; compiling takes longer with every
step (about 20 s for 5 steps of a small network). Cost: 9F a step; memory as `RetainGraphs`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.compiled.functions import Form, Outcome, whole
from gimli_core.compiled.kernel import Kernel
from gimli_core.compiled.steps import bound, fixed_of, options_of
from gimli_core.inputs import Inputs
from gimli_core.optimizers.fused import Fused
from gimli_core.optimizers.interface import Hyper, State, Tensors

__all__ = ["CompiledWhole", "Given", "form_of", "given_of", "is_small"]

# What is compiled whole unasked: few steps, and few numbers in each.
STEPS, NUMBERS = 8, 2**18


def is_small(inputs: Inputs) -> bool:
    """Whether a run is small enough to be compiled whole."""
    packed = pytree.tree_leaves(inputs.optimizer.pack(inputs.theta_0))
    return inputs.steps <= STEPS and sum(v.numel() for v in packed) <= NUMBERS


class Given(NamedTuple):
    """The tensors of a run; the last two are what may have another form in another call."""

    theta_0: Tensors  # as the caller gave them: not packed, and not once a task where the tasks share them
    state_0: State  # empty where the optimizer's own start is meant
    phi_loss: Tensors
    frozen: Tensors
    hypers: list[Hyper]  # packed; one alone if it holds for every step
    weights: Tensor
    batches: list[Any]
    val_batch: Any


class CompiledWhole:
    """Lines 4-14 of one problem as one compiled function. Raises Uncompiled, with the reason."""

    def __init__(self, inputs: Inputs) -> None:
        given, environment = given_of(inputs), inputs.environment
        function = bound(whole, fixed_of(inputs), form_of(inputs))
        self._kernel = Kernel("the whole run", function, environment, given, given[-2:], **options_of(inputs))
        self.seconds = self._kernel.seconds
        found = environment.capture()
        self._kernel(given[-2:], *given)
        after = environment.capture(found)  # shares with `found` what is the same
        environment.restore(found)
        draws = any(new is not old for new, old in zip(after.generators, found.generators, strict=True))
        self._pure = not draws and not environment.names

    @property
    def pure(self) -> bool:
        """Whether a run surely changes nothing but what it returns: no random numbers, no buffers, no other graph."""
        return self._pure and self._kernel.graphs == 1

    def __call__(self, given: Given) -> Outcome | None:
        """The outcome; None where it cannot run compiled, or something is not finite: an eager run names what broke."""
        self._kernel.begin()
        return _sound(self._kernel.compiled(given[-2:], *given))

    def as_it_is(self, given: Given) -> Outcome | None:
        """The same, None also where something that the losses read is no longer as it was when they were compiled."""
        return _sound(self._kernel.as_it_is(given[-2:], *given)) if self.pure else None


def _sound(found: tuple[Outcome, Tensor] | None) -> Outcome | None:
    return found[0] if found is not None and found[1].item() else None


def form_of(inputs: Inputs) -> Form:
    """What `whole` is compiled for."""
    return Form(tuple(w is not None for w in inputs.weights), inputs.tasks, inputs.warm)


def given_of(inputs: Inputs) -> Given:
    """The tensors of a run. What the tasks share is theirs once: the first task's."""
    J, optimizer, tasks = inputs.steps, inputs.optimizer, inputs.tasks
    shared = tasks is not None and not tasks.theta
    return Given(
        theta_0={k: (v[0] if shared else v).contiguous() for k, v in inputs.theta_0.items()},
        state_0={} if isinstance(optimizer, Fused) else pytree.tree_map(torch.Tensor.contiguous, inputs.state_0),
        phi_loss=inputs.phi_loss,
        frozen=inputs.frozen,
        hypers=[optimizer.pack_hyper(inputs.hyper.at(j)) for j in range(1 if inputs.hyper.constant else J)],
        weights=torch.tensor([0.0 if w is None else w for w in inputs.weights], dtype=torch.float64),
        batches=[inputs.batch(j) for j in range(J)],
        val_batch=inputs.val_batch,
    )
