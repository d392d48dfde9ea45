"""The one door: which run a call gets. Checked, required, transformed, settled, chosen, in this order."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from gimli_core.arguments.call import Call
from gimli_core.arguments.in_shards import check_sharded, in_shards, pays_in_shards, random_numbers
from gimli_core.arguments.inputs import Inputs, as_one_vector, prepare
from gimli_core.arguments.outer_losses import refuse_vector
from gimli_core.arguments.trial import looking
from gimli_core.arguments.until import check_until
from gimli_core.compiled.choice import check_compile, options
from gimli_core.compiled.in_time import compiled_by_now, too_early
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.compiled.steps_over_ranks import CompiledOverRanks
from gimli_core.compiled.whole_run import CompiledWhole, tensors_of_run
from gimli_core.errors import notice, unexpected
from gimli_core.memory.before_a_run import before_a_run, room_for_copies
from gimli_core.memory.directory import directory_of
from gimli_core.memory.pilot import Maker
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.memory.schedules.budget import Budget
from gimli_core.memory.schedules.forward_only import ForwardOnly
from gimli_core.memory.settle import begun, schedule_of_call, settle
from gimli_core.processes.agreement import agreed_all, together
from gimli_core.processes.mesh import check_mesh
from gimli_core.requirements.examine import require
from gimli_core.runs import compiled_run, recall
from gimli_core.runs.again import AgainIfNeeded
from gimli_core.runs.apart import apart_if_needed, keep_apart
from gimli_core.runs.chunks import Chunks
from gimli_core.runs.clocked import Clocked
from gimli_core.runs.compiled_run import CompiledRun
from gimli_core.runs.eager_steps import EagerSteps, Steps
from gimli_core.runs.journal import Journal
from gimli_core.runs.other_numbers import take_over
from gimli_core.runs.over_ranks import Told, begun_together, over_ranks
from gimli_core.runs.plain_values import fingerprint
from gimli_core.runs.run import Run
from gimli_core.runs.scheduled_run import ScheduledRun
from gimli_core.runs.settling import Ahead, Rested, settled
from gimli_core.runs.wants import Wants
from gimli_core.transforms.one_vector import LeftAlone, OneVector
from gimli_core.transforms.over_tasks import TasksApart
from gimli_core.transforms.tasks import check_tasks

__all__ = ["checked", "make_run", "makers", "scheduled"]


def make_run(call: Call, wants: Wants | None = None) -> Run:
    """The run for a call. Raises what `meta_gradient` raises before any work."""
    wants = wants or Wants()
    check_compile(call.compile)
    schedule_of_call(call)
    memory = begun(call.memory)
    if memory is not call.memory:
        call = replace(call, memory=memory)
    if call.resume is not None:
        directory_of("resume", call.resume)
    mesh = check_mesh(call.mesh)
    if mesh is not None:
        call = replace(call, mesh=mesh)
        if mesh.shard is not None:
            together(mesh, "mesh", partial(check_sharded, call, watched=wants.names))
        if mesh.tasks is not None:
            return over_ranks(call, mesh, partial(_one, wants=replace(wants, weighed=False)))
    if getattr(call.problem, "memo", None) is not None and call.problem.memo.tasks_apart:
        call = _one_at_a_time(call)
    parts = call.parts()
    if len(parts) == 1:
        return _one(call, wants)
    if call.resume is not None:
        actual, do = f"Tasks(chunk={call.tasks.chunk})", "Give one of chunk= and resume=."  # type: ignore[union-attr]
        raise unexpected("resume", "None where tasks are run in chunks", actual, do)
    return Chunks(call, parts, partial(_one, wants=replace(wants, weighed=False)))


def _of_tasks_in_turn(call: Call, wants: Wants, apart: Any) -> Run:
    """The run of tasks each by itself, once it is found out that they can only be run so."""
    call.problem.memo.tasks_apart = True
    notice(f"tasks run one at a time: {apart.why}")
    return make_run(_one_at_a_time(call), wants)


def _one_at_a_time(call: Call) -> Call:
    tasks = check_tasks(call.tasks)
    return call if tasks is None or tasks.count == 1 else replace(call, tasks=replace(tasks, chunk=1))


def _one(call: Call, wants: Wants) -> Run:
    """The run of one chunk of tasks, or of one inner loop."""
    try:
        return _at_once(call, wants)
    except TasksApart as apart:
        return _of_tasks_in_turn(call, wants, apart)


def _at_once(call: Call, wants: Wants) -> Run:
    until = check_until(call.until, call.val_weights)
    if until is None:
        return _of_steps(call, wants)
    ahead = Wants(tied=wants.tied, lines=True, forward_only=True)
    with before_a_run(call.memory) as told:
        call, taken = settled(call, until, lambda call: _ahead(call, ahead))
        call = replace(call, memory=told())
    run = _of_steps(call, wants)
    return run if taken is None else Rested(run, taken)


def _ahead(call: Call, wants: Wants) -> Ahead:
    """An eager run forwards, told of every line: it is a scheduled one, with its environment."""
    run: Any = _of_steps(replace(call, memory=None, resume=None), wants)
    ahead: Ahead = run
    return ahead


def _of_steps(call: Call, wants: Wants) -> Run:
    """The run of so many steps."""
    schedule, free = schedule_of_call(call), call.memory is None and call.resume is None
    alone = not (wants.names or wants.forward_only or call.resume is not None)  # only the result is wanted
    look = recall.look_of(call, schedule.replays, wants.tied, wants.steps) if alone else None
    if free and alone:
        taken_over = recall.recalled_whole(look, call)
        if taken_over is not None:
            compiled, form, hyper, tensors = taken_over
            compute = partial(compiled_run.whole_run, compiled, form, hyper, tensors, None)
            return CompiledRun(form, hyper, tensors.frozen, compute, lambda: _prepared(call, wants, look))
    return apart_if_needed(call, lambda: _prepared(call, wants, look))


def _prepared(call: Call, wants: Wants, look: Any) -> Run:
    schedule, free = schedule_of_call(call), call.memory is None and call.resume is None
    compile = False if wants.changes else call.compile
    inputs, compiled = recall.recalled(look, call), None
    if inputs is None or _asks(inputs, schedule, compile, wants):
        with looking(call), before_a_run(schedule) as told:
            if inputs is None or not recall.as_before(inputs):
                inputs = checked(call, schedule, wants)
                recall.remember(look, inputs, call.problem)
            if wants.one_number:
                refuse_vector(inputs, wants.one_number)
            if not wants.forward_only:
                watched = wants.steps or wants.lines
                kinds = partial(options, inputs, compile, unscheduled=free, watched=watched, weighed=wants.weighed)
                compiled = compiled_by_now(inputs, kinds, compile)
            schedule = told()

    def scheduled_by(steps: Steps, resume: Any = None) -> Run:
        settled = ForwardOnly() if wants.forward_only else schedule
        with looking(call) if isinstance(settled, Budget) or resume is not None else nullcontext():  # asks for batches
            run_of = wants.of(inputs) if steps.eager and resume is None else inputs
            run: Any = scheduled(run_of, settled, steps, resume, weighed=wants.weighed)
        if compile == "auto" and steps.eager and not run.schedule.compact:
            run = Clocked(run, watched=wants.lines)
        if inputs.form.mesh is not None:
            return Told(run, inputs.form.mesh)
        ways: dict[type[Exception], Any] = {recall.OtherParts: anew} if look is not None else {}
        if any(isinstance(transform, OneVector) for transform in inputs.form.transforms):
            ways[LeftAlone] = by_name
        if (inputs.form.tasks or 1) > 1:
            ways[TasksApart] = partial(_of_tasks_in_turn, call, wants)
        made: Run = AgainIfNeeded(run, ways, inputs.environment) if ways else run
        return made

    def anew(_: object) -> Run:
        recall.forget(look, call.problem)
        return _prepared(call, wants, look)

    def by_name(_: object) -> Run:
        keep_apart(call)
        return _prepared(call, wants, None)

    form, values = inputs.form, inputs.values
    if compiled is None or isinstance(compiled, (CompiledSteps, CompiledOverRanks)):
        return scheduled_by(compiled or EagerSteps(), None if wants.forward_only else call.resume)
    if isinstance(compiled, CompiledWhole):
        tensors = tensors_of_run(inputs)
        recall.remember_whole(look, compiled, tensors, call.problem)
        compute = partial(compiled_run.whole_run, compiled, form, values.hyper, tensors, inputs.environment)
        vector = False
    else:
        compute = partial(compiled_run.retained, compiled, inputs)
        vector = compiled.outer_losses is not None
    return CompiledRun(form, values.hyper, values.frozen, compute, partial(scheduled_by, EagerSteps()), vector=vector)


def _asks(inputs: Inputs, schedule: Schedule, compile: bool | str, wants: Wants) -> bool:
    """Whether batches are asked for before the first step: by a budget that measures, by what is compiled."""
    compiles = not too_early(inputs.form.problem.memo) if compile == "auto" else bool(compile)
    return compiles or isinstance(schedule, Budget) or bool(wants.one_number)


def checked(call: Call, schedule: Schedule, wants: Wants) -> Inputs:
    """The inputs of a call: checked, its requirements tested, in the form that is run."""
    mesh = check_mesh(call.mesh)
    if mesh is not None:
        inputs = begun_together(call, mesh, lambda: _required(prepare(call), call, schedule, wants))
        in_pieces = mesh.data is not None and mesh.shard is None and pays_in_shards(inputs)
        if in_pieces and agreed_all(mesh, not wants.names):  # one rank alone may be watched
            assert mesh.data is not None
            mesh = replace(mesh, shard=replace(mesh.data, use="shard"))
        inputs = replace(inputs, form=replace(inputs.form, mesh=mesh))
        if call.resume is not None:
            journaled = fingerprint(inputs, of_all=True)
            inputs = replace(inputs, form=replace(inputs.form, journaled=journaled))
        if mesh.shard is None:
            return inputs
        if not mesh.data_in_shards:  # these evaluate the losses on one batch
            together([mesh.shard], "mesh", lambda: None, lambda: {"random numbers": random_numbers(inputs)})
        return in_shards(inputs, mesh.shard)
    inputs = _required(prepare(call), call, schedule, wants)
    # A resumed run may be looked at otherwise than the one that was killed was: what that one wrote must fit.
    by_name = wants.names or call.problem.memo.by_name or call.resume is not None
    return inputs if by_name else as_one_vector(inputs)


def _required(inputs: Inputs, call: Call, schedule: Schedule, wants: Wants) -> Inputs:
    room = partial(room_for_copies, call.memory)
    return require(inputs, replays=schedule.replays, tied=wants.tied, first=room) if call.check else inputs


def scheduled(
    inputs: Inputs, schedule: Schedule, steps: Steps, resume: Any = None, *, weighed: bool = False
) -> ScheduledRun:
    """A run of a schedule; a budget is measured first, and a journal says where an earlier run was."""
    journal = None if resume is None else Journal(directory_of("resume", resume), inputs, inputs.form.mesh or ())
    try:
        if journal is not None:
            take_over(journal, inputs)
        if journal is not None and journal.reached is not None:
            schedule = journal.schedule(journal.reached[1]["schedule"], schedule.disk)
        schedule, inputs, between = settle(schedule, inputs, *makers(steps, weighed=weighed), weighed=weighed)
        return ScheduledRun(inputs, schedule, steps, journal, between, weighed=weighed)
    except BaseException:
        if journal is not None:
            journal.close()
        raise


def makers(steps: Steps, *, weighed: bool = False) -> tuple[Maker, Maker | None]:
    """What makes a run of eager steps, and one of these if they are compiled."""

    def by(steps: Steps) -> Maker:
        return lambda inputs, schedule: ScheduledRun(inputs, schedule, steps, weighed=weighed)

    return by(EagerSteps()), None if steps.eager else by(steps)
