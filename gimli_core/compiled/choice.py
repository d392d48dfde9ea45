"""What to compile: nothing, single steps, a step forwards and its sweep, or a short run whole; once for its shapes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_losses
from gimli_core.compiled.compiler.split_function import Uncut
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.compiled.retained_run import CompiledRetained
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.compiled.whole_run import CompiledWhole, course_of, is_small
from gimli_core.derivatives.first_order import evaluate, gradient
from gimli_core.errors import ArgumentError, explain, listing, notice
from gimli_core.optimizers.interface import with_path
from gimli_core.problem import Memo
from gimli_core.transforms.one_vector import LeftAlone
from gimli_core.trees import fits, outline

__all__ = ["AUTO_SECONDS", "Compiled", "check_compile", "chosen", "clocked"]

CHOICES = (True, False, "auto", "steps", "whole")
_ONE_AT_A_TIME = threading.RLock()  # threads that run one problem compile it once
AUTO_SECONDS = 60.0  # of eager runs of one problem, after which "auto" compiles it

Compiled = CompiledSteps | CompiledRetained | CompiledWhole

KINDS: dict[str, tuple[str, Callable[[Inputs], Compiled]]] = {
    "steps": ("one step forwards and one backwards", CompiledSteps),
    "retained": ("one step forwards and its sweep", CompiledRetained),
    "whole": ("the whole run", CompiledWhole),
}


@contextmanager
def clocked(memo: Memo) -> Iterator[None]:
    """Adds the time within it to what eager runs of a problem have taken."""
    start = time.monotonic()
    try:
        yield
    finally:
        memo.eager_seconds += time.monotonic() - start


def check_compile(compile: object) -> None:
    """Raise ArgumentError unless `compile` is one of the choices."""
    if not any(compile is choice or (isinstance(compile, str) and compile == choice) for choice in CHOICES):
        do = "True compiles at the first call, False never, 'auto' once eager runs of a problem have taken a minute."
        raise ArgumentError(explain("compile", listing(CHOICES), repr(compile), do))


def chosen(
    inputs: Inputs, compile: bool | str, *, whole: bool, watched: bool = False, weighed: bool = False
) -> Compiled | None:
    """What to run with; None for eager steps.

    `whole`: whether a run may keep what it likes, since no schedule was asked for. One that was asked for has the same
    bits as every other: "auto" leaves it eager. `watched`: whether someone wants to be told of every step. `weighed`:
    whether the sweep of several outer losses is to begin only once it is known how much each counts.
    """
    form, memo = inputs.form, inputs.form.problem.memo
    if compile is False or form.steps == 0:
        return None
    if not form.curvature or form.evaluates_again or form.in_parts:
        if compile != "auto":
            in_parts = "micro-batches are summed one after the other"
            line_14 = "what is compiled has all of line 14, by reverse over reverse"
            notice(f"not compiled: {in_parts if form.in_parts else line_14}")
        return None
    whole = whole and form.first == 0 and not inputs.values.indexed
    if compile == "auto" and (not whole or memo.eager_seconds < AUTO_SECONDS):
        return None
    if compile == "whole" and not whole:
        expected = "'steps' or True beside memory=, resume= or Truncated"
        raise ArgumentError(explain("compile", expected, "'whole'", "A whole run keeps every step."))
    if compile != "whole" and weighed and outer_losses(inputs) is not None:
        whole = False
    if compile == "whole" or (compile != "steps" and whole and not watched and is_small(inputs)):
        found = _compiled(memo, ("whole", form.steps, repr(course_of(inputs)[0]), form.warm), inputs)
        if compile == "whole" or not isinstance(found, Uncompiled):
            return None if isinstance(found, Uncompiled) else found
    found = _compiled(memo, ("retained",), inputs) if whole else Uncut()
    if isinstance(found, Uncut):
        found = _compiled(memo, ("steps",), inputs)
    if isinstance(found, CompiledSteps):
        try:
            found.look(inputs)
        except Uncompiled as reason:
            notice(f"not compiled any more: {reason}")
            found = reason
    return None if isinstance(found, Uncompiled) else found


def _compiled(memo: Memo, kind: tuple[Any, ...], inputs: Inputs) -> Compiled | Uncompiled:
    """What was compiled of this kind, or why it was not; at the first call it is compiled, with a notice."""
    wanted = (kind, *inputs.signature())
    with _ONE_AT_A_TIME:
        for like, found in memo.compiled:
            if fits(wanted, like):
                return found  # type: ignore[no-any-return]
        found = _compile(kind, inputs)
        memo.compiled.append((outline(wanted), found))
        return found


def _compile(kind: tuple[Any, ...], inputs: Inputs) -> Compiled | Uncompiled:
    what, compiled = KINDS[kind[0]]
    why = _with_aux(inputs)
    if why is None and (missed := _missed(inputs)):
        why = f"train_loss does not use {listing(missed)} in some step, and it is then left alone"
    if why is not None:
        reason = Uncompiled(why)
        notice(f"{what} not compiled: {reason}")
        return reason
    notice(f"compiling {what}, once for this problem and these shapes …")
    try:
        found = compiled(inputs)
    except Uncompiled as reason:
        notice(f"{what} not compiled: {reason}")
        return reason
    notice(f"compiled in {found.seconds:.1f} s")
    return found


def _with_aux(inputs: Inputs) -> str | None:
    """Why a problem whose losses return (loss, aux) is not compiled. Cost 2F, once."""
    environment, values, problem = inputs.environment, inputs.values, inputs.form.problem
    before = environment.capture()
    theta = {**values.frozen, **values.theta_0}
    batches = {"train_loss": values.batch(0), "val_loss": values.last_val_batch}
    phi = {"train_loss": values.phi_at(0), "val_loss": values.phi_loss}
    with torch.enable_grad():
        aux = [evaluate(getattr(problem, k), k, theta, phi[k], v)[1] is not None for k, v in batches.items()]
    environment.restore(before)
    names = [name for name, returned in zip(batches, aux, strict=True) if returned]
    return f"{listing(names)} return (loss, aux), and what is compiled returns the loss alone" if names else None


def _missed(inputs: Inputs) -> list[str]:
    """Tensors that some step would leave alone; a compiled step gives them a gradient of 0. Cost 3F a step, once."""
    environment, values = inputs.environment, inputs.values
    found = environment.capture()
    names: set[str] = set()
    try:
        for j in range(inputs.form.steps):
            G = gradient(
                inputs.form.problem.train_loss, "train_loss", values.theta_0, values.phi_at(j), values.batch(j),
                frozen=values.frozen, keep_graph=True,
            )  # fmt: skip
            inputs.look_for_missed(j, values.theta_0, G.theta, values.batch(j))
            names |= G.theta.keys() - with_path(inputs.form.optimizer, G.theta, G.unused).keys()
    except LeftAlone as missed:
        names |= set(missed.names)
    finally:
        environment.restore(found)
    return sorted(names)
