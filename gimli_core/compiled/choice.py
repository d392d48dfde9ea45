"""What to compile: nothing, single steps, a step forwards and its sweep, or a short run whole; once for its shapes.

Ranks that share a batch or theta compile each its own share, or none does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_losses
from gimli_core.compiled.compiler.collector import young_alone
from gimli_core.compiled.compiler.cut import Uncut
from gimli_core.compiled.compiler.trial import Uncompiled, progress_told, tell_progress
from gimli_core.compiled.effects_of_batches import ChangingBatches, changing_batches
from gimli_core.compiled.operations import is_small
from gimli_core.compiled.rank_kernels import RankKernels, of_rank
from gimli_core.compiled.retained_run import CompiledRetained
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.compiled.steps_over_ranks import CompiledOverRanks
from gimli_core.compiled.unfit import unfit
from gimli_core.compiled.whole_run import CompiledWhole, course_of
from gimli_core.errors import listing, notice, unexpected
from gimli_core.problem import Memo
from gimli_core.processes.agreement import agreed_all, together
from gimli_core.processes.mesh import tells

__all__ = [
    "KINDS",
    "Compiled",
    "Kind",
    "check_compile",
    "chosen",
    "compiled_for",
    "compiled_on_ranks",
    "options",
    "remembered",
]

CHOICES = (True, False, "auto", "steps", "whole")
_ONE_AT_A_TIME = threading.RLock()  # threads that run one problem compile it once

Compiled = CompiledSteps | CompiledRetained | CompiledWhole
Kind = tuple[Any, ...]  # its name in KINDS, and what else it is compiled for

KINDS: dict[str, tuple[str, Callable[[Inputs], Any]]] = {
    "steps": ("one step forwards and one backwards", CompiledSteps),
    "retained": ("one step forwards and its sweep", CompiledRetained),
    "whole": ("the whole run", CompiledWhole),
    "ranks": ("one step forwards and its sweep between what ranks send", RankKernels),
}


def check_compile(compile: object) -> None:
    """Raise ArgumentError unless `compile` is one of the choices."""
    if not any(compile is choice or (isinstance(compile, str) and compile == choice) for choice in CHOICES):
        do = "True compiles at the first call, False never, 'auto' beside eager runs that have taken half a minute."
        raise unexpected("compile", listing(CHOICES), repr(compile), do)


def options(
    inputs: Inputs, compile: bool | str, *, unscheduled: bool, watched: bool = False, weighed: bool = False
) -> list[Kind]:
    """What may be compiled for a run, the fastest first; nothing for a run that can only be eager.

    `unscheduled`: whether a run may keep what it likes, since no schedule was asked for. One that was asked for has the
    same bits as every other: "auto" leaves it eager. `watched`: whether someone wants to be told of every step.
    `weighed`: whether the sweep of several outer losses is to begin only once it is known how much each counts.
    """
    form = inputs.form
    if compile is False or form.steps == 0:
        return []
    if not form.curvature or form.evaluates_again or form.in_parts:
        if compile != "auto":
            in_parts = "micro-batches are summed one after the other"
            line_14 = "what is compiled has all of line 14, by reverse over reverse"
            notice(f"not compiled: {in_parts if form.in_parts else line_14}")
        return []
    if form.mesh is not None:
        return [] if compile == "auto" else [("ranks", *((ranks.use, ranks.rank, ranks.size) for ranks in form.mesh))]
    unscheduled = unscheduled and form.first == 0 and not inputs.values.indexed
    if compile == "auto" and not unscheduled:
        return []
    if compile == "whole" and not unscheduled:
        expected = "'steps' or True beside memory=, resume= or Truncated"
        raise unexpected("compile", expected, "'whole'", "A whole run keeps every step.")
    if compile != "whole" and weighed and outer_losses(inputs) is not None:
        unscheduled = False
    kinds: list[Kind] = []
    if compile == "whole" or (compile != "steps" and unscheduled and not watched and is_small(inputs)):
        kinds.append(("whole", form.steps, repr(course_of(inputs)[0]), form.warm))
    if compile != "whole":
        kinds += [("retained",)] * unscheduled + [("steps",)]
    return kinds


def chosen(inputs: Inputs, compile: bool | str, *, unscheduled: bool, watched: bool = False) -> Compiled | None:
    """What to run with, compiled here and now if it was not before; None for eager steps. For `options`."""
    return compiled_for(inputs, options(inputs, compile, unscheduled=unscheduled, watched=watched))


def compiled_for(inputs: Inputs, kinds: Sequence[Kind]) -> Compiled | None:
    """The first of these kinds that can be compiled; None for eager steps."""
    compiled: Compiled | Uncompiled | None = None
    for kind in kinds:
        compiled = _compiled(kind, inputs)
        if not may_go_on(kind, compiled):
            break
    if isinstance(compiled, CompiledSteps):
        try:
            compiled.look(inputs)
        except Uncompiled as reason:
            notice(f"not compiled any more: {reason}")
            return None
    if isinstance(compiled, Uncompiled):
        of_losses = not isinstance(compiled, ChangingBatches)
        inputs.form.problem.memo.patience.refused |= of_losses and kinds[-1][0] != "whole"
        return None
    return compiled


def compiled_on_ranks(inputs: Inputs, kinds: Sequence[Kind]) -> CompiledOverRanks | None:
    """What was compiled of this rank's share, if every rank could compile its own: else all of them run eager."""
    mesh = inputs.form.mesh
    if mesh is None or not kinds:
        return None

    def made() -> CompiledOverRanks | None:
        kernels = _compiled(kinds[0], inputs)
        if isinstance(kernels, Uncompiled):
            return None
        try:
            return CompiledOverRanks(kernels, inputs)
        except Uncompiled as reason:
            notice(f"not compiled any more: {reason}")
            return None

    compiled = together(mesh, "compile", made)
    if agreed_all(mesh, compiled is not None):
        return compiled
    if compiled is not None:
        notice("not compiled: another rank could not, and said why")
    return None


def may_go_on(kind: Kind, compiled: Compiled | Uncompiled) -> bool:
    """Whether another kind may do where this one did not: what cannot be compiled in two halves cannot in one."""
    if isinstance(compiled, ChangingBatches):
        return False
    return isinstance(compiled, Uncut) if kind == ("retained",) else isinstance(compiled, Uncompiled)


def remembered(kind: Kind, inputs: Inputs) -> Any:
    """What was compiled of this kind, or why it was not; None if it was not tried."""
    wanted = (kind, *inputs.signature())
    memo: Memo = inputs.form.problem.memo
    return memo.compiled.get(wanted)


def _compiled(kind: Kind, inputs: Inputs) -> Any:
    """What was compiled of this kind, or why it was not; at the first call it is compiled, with a notice."""
    with _ONE_AT_A_TIME:
        compiled = remembered(kind, inputs)
        if compiled is None:
            with young_alone():
                compiled = _compile(kind, inputs)
            inputs.form.problem.memo.compiled.put((kind, *inputs.signature()), compiled)
        return compiled if isinstance(compiled, Uncompiled) else changing_batches(compiled, inputs) or compiled


def _compile(kind: Kind, inputs: Inputs) -> Any:
    what, compiled = KINDS[kind[0]]
    if reason := unfit(inputs if inputs.form.mesh is None else of_rank(inputs)):
        notice(f"{what} not compiled: {reason}")
        return reason
    with progress_told(tells(inputs.form.mesh)):
        tell_progress(f"compiling {what}, once for this problem and these shapes …")
        try:
            with inputs.environment.trial():
                outcome = compiled(inputs)
        except Uncompiled as reason:
            notice(f"{what} not compiled: {reason}")
            return reason
        tell_progress(f"compiled in {outcome.seconds:.1f} s")
    return outcome
