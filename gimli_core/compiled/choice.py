"""What to compile: nothing, single steps, a loop over them, or a short run whole; once for a problem and its shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gimli_core.arguments.inputs import Inputs, signature
from gimli_core.compiled.compiler.split_function import Uncut
from gimli_core.compiled.compiler.trees_in_source import fits, outline
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.compiled.retained_run import CompiledLoop
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.compiled.whole_run import CompiledWhole, course_of, is_small
from gimli_core.errors import ArgumentError, explain, listing, notice
from gimli_core.forward_unroll import inner_gradient
from gimli_core.optimizers.interface import with_path
from gimli_core.record import Point

__all__ = ["AUTO_SECONDS", "Clock", "check_compile", "chosen"]

CHOICES = (True, False, "auto", "steps", "whole")
AUTO_SECONDS = 60.0  # of eager runs of one problem, after which "auto" compiles it

Compiled = CompiledSteps | CompiledLoop | CompiledWhole


KINDS: dict[str, tuple[str, Callable[[Inputs], Compiled]]] = {
    "steps": ("one step forwards and one backwards", CompiledSteps),
    "loop": ("one step forwards and its sweep", CompiledLoop),
    "whole": ("the whole run", CompiledWhole),
}


class Known:
    """What is known of a problem."""

    def __init__(self) -> None:
        self.seconds = 0.0  # spent in eager runs
        self.compiled: list[tuple[Any, Compiled | Uncompiled]] = []  # for an outline


class Clock:
    """Adds the time between its start and `stop()` to what eager runs of a problem have taken."""

    def __init__(self, known: Known) -> None:
        self._known, self._start = known, time.monotonic()

    def stop(self) -> None:
        self._known.seconds += time.monotonic() - self._start


def check_compile(compile: object) -> None:
    """Raise ArgumentError unless `compile` is one of the choices."""
    if not any(compile is choice or (isinstance(compile, str) and compile == choice) for choice in CHOICES):
        do = "True compiles at the first call, False never, 'auto' once eager runs of a problem have taken a minute."
        raise ArgumentError(explain("compile", listing(CHOICES), repr(compile), do))


def chosen(
    inputs: Inputs, compile: bool | str, *, whole: bool, watched: bool = False
) -> tuple[Compiled | None, Clock | None]:
    """What to run with, and a clock for an eager run whose time counts.

    `whole`: whether a run may keep what it likes, since no schedule was asked for. One that was asked for has the same
    bits as every other: "auto" leaves it eager. `watched`: whether someone wants to be told of every step.
    """
    if compile is False or inputs.steps == 0:
        return None, None
    if inputs.first_order or inputs.evaluates_again:
        if compile != "auto":
            notice("not compiled: what is compiled has all of line 14, by reverse over reverse")
        return None, None
    whole = whole and inputs.first == 0
    known: Known = inputs.problem.made.setdefault("compiled", Known())
    if compile == "auto" and (not whole or known.seconds < AUTO_SECONDS):
        return None, Clock(known) if whole else None
    if compile == "whole" and not whole:
        raise ArgumentError(
            explain(
                "compile",
                "'steps' or True beside memory=, resume= or truncate=",
                "'whole'",
                "A whole run keeps every step.",
            )
        )
    if compile == "whole" or (compile != "steps" and whole and not watched and is_small(inputs)):
        course = course_of(inputs)
        found = _compiled(known, ("whole", inputs.steps, course.validates, course.warm), inputs)
        if compile == "whole" or not isinstance(found, Uncompiled):
            return None if isinstance(found, Uncompiled) else found, None
    found = _compiled(known, ("loop",), inputs) if whole else Uncut()
    if isinstance(found, Uncut):
        found = _compiled(known, ("steps",), inputs)
    if isinstance(found, CompiledSteps):
        try:
            found.look(inputs)
        except Uncompiled as reason:
            notice(f"not compiled any more: {reason}")
            found = reason
    return None if isinstance(found, Uncompiled) else found, None


def _compiled(known: Known, kind: tuple[Any, ...], inputs: Inputs) -> Compiled | Uncompiled:
    """What was compiled of this kind, or why it was not; at the first call it is compiled, with a notice."""
    wanted = (kind, *signature(inputs))
    for like, found in known.compiled:
        if fits(wanted, like):
            return found
    known.compiled.append((outline(wanted), _compile(kind, inputs)))
    return known.compiled[-1][1]


def _compile(kind: tuple[Any, ...], inputs: Inputs) -> Compiled | Uncompiled:
    what, compiled = KINDS[kind[0]]
    if missed := _missed(inputs):
        reason = Uncompiled(f"train_loss does not use {listing(missed)} in some step, and it is then left alone")
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


def _missed(inputs: Inputs) -> list[str]:
    """Tensors that some step would leave alone; a compiled step gives them a gradient of 0. Cost 3F a step, once."""
    environment = inputs.environment
    found = environment.capture()
    names: set[str] = set()
    try:
        for j in range(inputs.steps):
            G = inner_gradient(inputs, Point(j, inputs.theta_0, inputs.state_0, None), keep_graph=False)
            names |= G.theta.keys() - with_path(inputs.optimizer, G.theta, G.unused).keys()
    finally:
        environment.restore(found)
    return sorted(names)
