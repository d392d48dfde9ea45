"""When `compile="auto"` compiles: beside eager runs that have taken long, and never so that a run waits for it.

    eager runs …  AUTO_SECONDS of processor time  →  a fork compiles (beside.py), the runs go on eager
                  the fork has ended well         →  the next run compiles the same, out of torch's cache on the disk

What a fork says in the end is the kind that it has compiled, that its numbers agree with eager ones, and how long the
second time takes. A problem whose losses were refused once, in whatever shapes, is not tried again.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.beside import Beside, can_fork
from gimli_core.compiled.choice import (
    KINDS,
    Compiled,
    Kind,
    compiled_for,
    compiled_on_ranks,
    may_go_on,
    remembered,
)
from gimli_core.compiled.compiler.other_graphs import as_compiled
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.compiled.effects_of_batches import changing_batches
from gimli_core.compiled.steps_over_ranks import CompiledOverRanks
from gimli_core.compiled.unfit import unfit
from gimli_core.errors import first_line, notice
from gimli_core.outlines import fits, outline
from gimli_core.problem import Memo, Patience

__all__ = ["AUTO_SECONDS", "GIVE_UP", "WAIT", "clocked", "compiled_by_now", "in_time", "too_early"]

AUTO_SECONDS = 30.0  # of processor time in eager runs of one problem: about what compiling takes
GIVE_UP = 1200.0  # seconds after which a fork is ended: most take a minute, and four beside a run that is all over
WAIT = 3.0  # seconds that the switch itself may take; or as long as one eager run

_ONE_FORK = threading.Lock()  # held by the thread that starts or looks after one
_under_way: list[Beside] = []  # at most one in a process: more would take the processors from the runs

Event = TypeVar("Event")


@dataclass(eq=False)
class Attempt:
    """A fork that compiles for a problem, for one outline of inputs."""

    beside: Beside
    wanted: Any  # the outline of its inputs' signature
    kinds: Sequence[Kind]


def clocked(patience: Patience, events: Iterator[Event], *, watched: bool = True) -> Iterator[Event]:
    """The events, while the processor time that it takes to come to the next is noted: not what is done with them.

    Where nobody watches, the clock is read at the ends alone: where a system call is slow, one an event takes longer
    than the step of a small problem.
    """
    spent = 0.0
    if not watched:
        start = time.thread_time()
        try:
            yield from events
        finally:
            spent = time.thread_time() - start
            patience.eager_seconds += spent
            patience.last_seconds = spent
        return
    try:
        while True:
            start = time.thread_time()
            try:
                event = next(events)
            except StopIteration:
                return
            finally:
                spent += time.thread_time() - start
            yield event
    finally:
        patience.eager_seconds += spent
        patience.last_seconds = spent


def in_time(inputs: Inputs, options: Callable[[], Sequence[Kind]]) -> Compiled | None:
    """What of these kinds is compiled already, for `compile="auto"`; None for eager steps. Starts, or ends, a fork."""
    memo = inputs.form.problem.memo
    patience = memo.patience
    if too_early(memo) or not (kinds := options()):
        return None
    if memo.compiled:
        for kind in kinds:
            compiled = remembered(kind, inputs)
            if compiled is not None and not isinstance(compiled, Uncompiled):
                return _as_it_was(compiled, inputs)
    if (patience.attempt is None and patience.eager_seconds < AUTO_SECONDS) or not _ONE_FORK.acquire(blocking=False):
        return None
    try:
        if patience.attempt is None:
            _begin(patience, inputs, kinds)
            return None
        return _look_after(patience, inputs)
    finally:
        _ONE_FORK.release()


def compiled_by_now(
    inputs: Inputs, options: Callable[[], Sequence[Kind]], compile: bool | str
) -> Compiled | CompiledOverRanks | None:
    """What to run with, by `compile`; None for eager steps. For `options`."""
    if inputs.form.mesh is not None:
        return compiled_on_ranks(inputs, options())
    return in_time(inputs, options) if compile == "auto" else compiled_for(inputs, options())


def too_early(memo: Memo) -> bool:
    """Whether `in_time` has nothing to hand out and nothing to start, whatever the inputs are."""
    patience = memo.patience
    waiting = not memo.compiled and patience.attempt is None and patience.eager_seconds < AUTO_SECONDS
    return patience.refused or waiting


def _as_it_was(compiled: Compiled, inputs: Inputs) -> Compiled | None:
    """What was compiled, if it still fits these inputs: nothing is compiled again unasked."""
    try:
        with as_compiled():
            compiled.look(inputs)
    except Uncompiled as reason:
        _refuse(inputs.form.problem.memo.patience, reason)
        return None
    return compiled if changing_batches(compiled, inputs) is None else None


def _begin(patience: Patience, inputs: Inputs, kinds: Sequence[Kind]) -> None:
    """Start a fork, unless one is under way for another problem."""
    _under_way[:] = [other for other in _under_way if not other.ended()]
    if _under_way:
        return
    patience.eager_seconds = 0.0
    refusal: object = can_fork(inputs.device)
    if refusal is None:
        apart = _with_batches(inputs)
        allowed = max(WAIT, patience.last_seconds)
        try:
            beside = Beside(lambda: compiled_twice(apart, kinds, allowed), GIVE_UP)
        except OSError as error:
            refusal = Uncompiled(first_line(error))
        else:
            notice("compiling beside the run, which goes on as it is; compile=False leaves that out")
            patience.attempt = Attempt(beside, outline(inputs.signature()), kinds)
            _under_way.append(beside)
            return
    _refuse(patience, refusal)


def _with_batches(inputs: Inputs) -> Inputs:
    """The inputs with all batches looked up: a fork reads no files."""
    values = inputs.values
    batches = [values.batch(j) for j in range(inputs.form.steps)]
    val_batches = {j: values.val_batch(j) for j, weighted in enumerate(inputs.form.weighted) if weighted}
    return replace(inputs, values=replace(values, batch=batches.__getitem__, val_batch=val_batches.__getitem__))


def _look_after(patience: Patience, inputs: Inputs) -> Compiled | None:
    """What the fork has compiled, once it has; None while it has not, or where it has failed."""
    attempt: Attempt = patience.attempt
    if not attempt.beside.ended():
        return None
    assert attempt.beside.said is not None
    if attempt.beside.failed:
        _refuse(patience, attempt.beside.said)
        return None
    if not fits(inputs.signature(), attempt.wanted):
        return None  # calls of other shapes take turns with these
    patience.attempt = None
    compiled = compiled_for(inputs, [kind for kind in attempt.kinds if kind[0] == attempt.beside.said])
    patience.refused |= compiled is None
    return compiled


def _refuse(patience: Patience, reason: object) -> None:
    do = "Runs of this problem stay eager; compile=True compiles at the next call, and waits"
    notice(f"not compiled: {reason}. {do}")
    patience.attempt, patience.refused = None, True


def compiled_twice(inputs: Inputs, kinds: Sequence[Kind], allowed: float) -> str:
    """In a fork: the name of the first kind that can be compiled, and found again within `allowed` seconds.

    Raises Uncompiled, with the reason.
    """
    if (why := unfit(inputs)) is not None:
        raise why
    start = time.process_time()
    importlib.import_module("torch._inductor.compile_fx")
    from torch._dynamo.utils import counters
    from torch._inductor import config

    imports = time.process_time() - start
    config.compile_threads = 1  # more would be processes that outlive this one
    if config.force_disable_caches or not config.fx_graph_cache:
        raise Uncompiled("torch's cache on the disk is switched off")
    reason = Uncompiled("there is nothing to compile")
    for kind in kinds:
        try:
            for _ in range(2):
                start = time.process_time()
                KINDS[kind[0]][1](inputs)
                again = imports + time.process_time() - start
        except Uncompiled as refusal:
            reason = refusal
            if not may_go_on(kind, refusal):
                raise
            continue
        if counters["inductor"]["fxgraph_cache_bypass"]:
            raise Uncompiled("the compiler cannot keep it on the disk")
        if again <= allowed:
            return str(kind[0])
        reason = Uncompiled(f"it is ready on the disk, but to load it takes {again:.0f} s")
    raise reason
