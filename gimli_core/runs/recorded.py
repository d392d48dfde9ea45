"""A run of Algorithm 1 whose operations autograd records: its results can be differentiated, again and again.

Lines 4-14 are torch's own operations: gradients of the losses, the rule's step and its pullback, sums. Recorded, they
are the meta-gradient as a function of theta_0, phi and s_0, and its derivative is exact. Nothing is recorded in an
ordinary run, and what is here is run only where a second derivative is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.attached import attached
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import in_parts, modules_of, prepare
from gimli_core.arguments.phi_loss import indexed_entries
from gimli_core.environment import Environment
from gimli_core.errors import unexpected
from gimli_core.memory.schedules.retain_graphs import RetainGraphs
from gimli_core.meta_parameters.marks import tensor_paths
from gimli_core.results import MetaGradient
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.runs.run import drain
from gimli_core.runs.scheduled_run import ScheduledRun

__all__ = ["Recorded", "check_derivatives"]


def check_derivatives(derivatives: Any, call: Call) -> None:
    """Raise ArgumentError unless the call's first derivatives can be recorded, if that is asked for."""
    if derivatives is not True and derivatives in (1, 2):
        if derivatives == 1:
            return
    else:
        do = "2 lets the result of backward be differentiated, as often as you like."
        raise unexpected("derivatives", "1 or 2", repr(derivatives), do)
    tasks = call.tasks
    learned = any(t.requires_grad for _, t in tensor_paths(call.val_weights))
    for name, there, do in (
        ("approximation", call.approximation is not None, "A second derivative of an approximation is of no loss."),
        ("resume", call.resume is not None, "What is recorded lives in memory."),
        ("mesh", call.mesh is not None, "What ranks send each other is not recorded."),
        ("mesh", call.mesh is not None, "Each process by itself can have them."),
        ("tasks", len(call.parts()) > 1, "Run all tasks at a time."),
        ("until", call.until is not None and tasks is not None, "Say how many steps, or run one inner loop."),
        ("micro_batches", bool(in_parts(*call.train_batches_in_parts())), "What is recorded keeps every graph."),
        ("phi_loss", bool(indexed_entries(call.phi_loss)), "Hand the rows of each batch yourself."),
        ("val_weights", learned, "Detach them, or put the weights into val_loss."),
    ):
        if there:
            what = {
                "mesh": "several processes",
                "micro_batches": "batches in parts",
                "phi_loss": "an indexed entry",
                "tasks": "chunks",
                "until": "one, with tasks",
                "val_weights": "weights that require grad",
            }
            expected = f"no such {name} beside derivatives=2"
            raise unexpected(name, expected, what.get(name, repr(getattr(call, name))), do)


class Recorded:
    """What is needed to run a call again, recorded: the call, and the random numbers and buffers that it met."""

    def __init__(self, call: Call, theta: Tensor) -> None:
        self._call = call
        self._environment = Environment(modules_of(call.problem), theta.device)
        self._start = self._environment.capture()

    def run(self, steps: int) -> MetaGradient:
        """The result of all lines, attached to what the caller gave. Cost: 9F·J, and all graphs."""
        before = self._environment.capture()
        self._environment.restore(self._start)
        try:
            with torch.enable_grad():
                call = replace(self._call, steps=steps, until=None, memory=None, second_order="auto")
                run = ScheduledRun(attached(prepare(call), call), RetainGraphs(compact=False), EagerSteps())
                drain(run.forward())
                drain(run.backward())
                return run.result()
        finally:
            self._environment.restore(before)
