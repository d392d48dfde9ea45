"""What a call needs around it: a Problem, autograd that can be asked, switches that are switches."""

from __future__ import annotations

import torch

from gimli_core.arguments.call import Call
from gimli_core.arguments.theta import check_made
from gimli_core.derivatives.modes import check_no_inference_mode
from gimli_core.derivatives.second_order import ASKED
from gimli_core.errors import check_switch, closest, listing, unexpected
from gimli_core.problem import Problem
from gimli_core.trees import named_tensors

__all__ = ["check_surroundings", "check_watching"]


def check_surroundings(call: Call) -> None:
    """Raise ArgumentError unless the call can be answered at all."""
    if not isinstance(call.problem, Problem):
        actual, do = type(call.problem).__name__, "Build one from two losses and an optimizer."
        raise unexpected("problem", "a gimli.Problem", actual, do)
    check_no_inference_mode()
    if torch._C._functorch.peek_interpreter_stack() is not None:
        actual, do = (
            "a call within grad, vmap or jvp",
            "Use .backward() of unroll, and tasks=T for many inner loops at once.",
        )
        raise unexpected("torch.func", "none of its transforms around this call", actual, do)
    if not isinstance(call.second_order, str) or call.second_order not in ASKED:
        do = f"'auto' picks one.{closest(call.second_order, ASKED)}"
        raise unexpected("second_order", listing(ASKED), repr(call.second_order), do)
    check_switch("check", call.check)
    for argument in ("theta_0", "phi_loss", "phi_opt", "state_0", "train_batches", "val_batch"):
        for name, tensor in named_tensors(getattr(call, argument), argument):
            check_made(name, tensor)


def check_watching(watch: object, progress: object) -> None:
    """Raise ArgumentError unless those who look on can be told."""
    check_switch("progress", progress)
    if watch is not None and not callable(watch):
        do = "Pass a function, or gimli.AdjointNorms()."
        raise unexpected("watch", "a function of a gimli.Event, or None", repr(watch), do)
