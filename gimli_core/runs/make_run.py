"""The run that a call's arguments ask for: one execution, compiled or not, or one for each chunk of the tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from gimli_core.arguments.batches import check_batches
from gimli_core.arguments.inputs import fused, prepare
from gimli_core.compiled.choice import check_compile, chosen
from gimli_core.compiled.whole_run import CompiledWhole, given_of
from gimli_core.errors import ArgumentError, explain
from gimli_core.memory.directory import directory_of
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.memory.schedules.retain_graphs import RetainGraphs
from gimli_core.meta_parameters.marks import PerTask, unmarked
from gimli_core.record import Event
from gimli_core.requirements.examine import require
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.compiled_run import Frame, WholeRun
from gimli_core.runs.recall import form_of, recalled, recalled_whole, remember, remember_whole
from gimli_core.runs.scheduled_run import Execution
from gimli_core.transforms.tasks import of_tasks, own

__all__ = ["Run", "check_schedule", "make_run"]

Events = Generator[Event, None, None]


class Run(Protocol):
    """Lines 4-9, then lines 10-16."""

    @property
    def steps(self) -> int: ...  # inner steps in all
    @property
    def scale(self) -> float: ...  # what the sum of the tasks' losses is multiplied by
    @property
    def trained(self) -> Collection[str]: ...  # the names of theta
    def forward(self) -> Events: ...
    def backward(self) -> Events: ...
    @property
    def val_loss(self) -> Tensor: ...
    def trajectory(self) -> Trajectory: ...
    def result(self) -> MetaGradient: ...


def make_run(
    arguments: Mapping[str, Any], *, memory: Schedule | None, check: bool, resume: Any, tied: bool,
    chunk: int | None = None, compile: bool | str = "auto", watched: bool = False,
) -> Run:  # fmt: skip
    """The run for `arguments` (those of `prepare`), checked. Raises what `meta_gradient` raises before any work."""
    schedule = check_schedule(memory)
    check_compile(compile)
    resume = None if resume is None else directory_of("resume", resume)
    T = arguments.get("tasks")
    free = memory is None and resume is None

    def run(arguments: Mapping[str, Any], resume: Any = None) -> Run:
        form = form_of(arguments, check, schedule.replays, tied, free, watched, compile)
        known = recalled_whole(form, arguments)
        if known is None:
            return prepared(arguments, resume, form)
        return WholeRun(*known, None, lambda: prepared(arguments, resume, form))

    def prepared(arguments: Mapping[str, Any], resume: Any, form: Any) -> Run:
        inputs = recalled(form, arguments)
        if inputs is None:
            inputs = prepare(**arguments)
            if check:
                inputs = require(inputs, replays=schedule.replays, tied=tied)
            inputs = fused(inputs)
            remember(form, inputs, arguments["problem"])
        compiled, clock = chosen(inputs, compile, whole=free, watched=watched)
        if not isinstance(compiled, CompiledWhole):
            return Execution(inputs, schedule, resume, compiled, clock)
        frame, given = Frame.of(inputs), given_of(inputs)
        remember_whole(form, compiled, frame, given, arguments["problem"])
        return WholeRun(compiled, frame, given, inputs.environment, lambda: Execution(inputs, schedule))

    if chunk is None:
        return run(arguments, resume)
    _check_chunk(chunk, T, resume)
    if not T or chunk >= T:
        return run(arguments, resume)
    parts = [(first, min(first + chunk, T)) for first in range(0, T, chunk)]
    return Chunks([_part(arguments, first, last) for first, last in parts], run, arguments)


class Chunks:
    """The tasks in chunks, each run forwards and backwards before the next is begun."""

    def __init__(
        self, parts: list[dict[str, Any]], run: Callable[[Mapping[str, Any]], Run], whole: Mapping[str, Any]
    ) -> None:
        self._parts, self._run, self._whole = parts, run, whole
        self._first: Run | None = run(parts[0])
        self.steps = self._first.steps * len(parts)  # inner steps of all chunks
        self.scale, self.trained = self._first.scale, self._first.trained
        self._result: MetaGradient | None = None

    def forward(self) -> Events:
        """All of Algorithm 1, chunk by chunk."""
        results = []
        for part in self._parts:
            run, self._first = self._first or self._run(part), None
            yield from chain(run.forward(), run.backward())
            results.append(run.result())
            del run
        self._result = joined(results, self._whole)

    def backward(self) -> Events:
        """Nothing: `forward` has been back already."""
        yield from ()

    @property
    def val_loss(self) -> Tensor:
        return self.result().val_loss

    def trajectory(self) -> Trajectory:
        return self.result()

    def result(self) -> MetaGradient:
        assert self._result is not None
        return self._result


def joined(results: list[MetaGradient], arguments: Mapping[str, Any]) -> MetaGradient:
    """The results of chunks as one: sums over what the tasks share, a dimension of all tasks for what they do not."""
    theta_0, state_0 = arguments["theta_0"], arguments.get("state_0")
    own_theta, own_state = isinstance(theta_0, PerTask), state_0 is None or isinstance(state_0, PerTask)
    fields = {name: [getattr(result, name) for result in results] for name in vars(results[0])}
    frozen = {k for k, v in results[0].theta_J.items() if not own_theta and k not in results[0].B_0}
    theta_J = {k: fields["theta_J"][0][k] if k in frozen else _join([t[k] for t in fields["theta_J"]], True)
               for k in results[0].theta_J}  # fmt: skip
    return MetaGradient(
        val_loss=_join(fields["val_loss"], False),
        theta_J=theta_J,
        state_J=_join(fields["state_J"], True),
        buffers_J=results[-1].buffers_J,
        train_losses=torch.cat(fields["train_losses"], 1),
        val_losses=torch.cat(fields["val_losses"], 1),
        task_val_losses=_join(fields["task_val_losses"], True),
        A_opt=_join(fields["A_opt"], False, arguments.get("phi_opt")),
        A_loss=_join(fields["A_loss"], False, arguments.get("phi_loss")),
        B_0=_join(fields["B_0"], own_theta),
        S_0=_join(fields["S_0"], own_state),
        recurrence=results[0].recurrence,
        approximation=results[0].approximation,
    )


def _join(parts: list[Any], own: bool, given: Any = None) -> Any:
    """The sum of the parts' tensors, or where they are the tasks' `own` (or `given` marked so) all of them in a row."""
    own = own or isinstance(given, PerTask)
    while given is not None and unmarked(given) is not given:
        given = given.value
        own = own or isinstance(given, PerTask)
    first = parts[0]
    if isinstance(first, Mapping):
        entry = given if isinstance(given, Mapping) else {}
        return {
            k: v if k == "step" else _join([part[k] for part in parts], own, entry.get(k)) for k, v in first.items()
        }
    if isinstance(first, (tuple, list)):
        beside = given or [None] * len(first)
        return type(first)(_join([part[i] for part in parts], own, beside[i]) for i in range(len(first)))
    return torch.cat(parts) if own else torch.stack(parts).sum(0)


def _part(arguments: Mapping[str, Any], first: int, last: int) -> dict[str, Any]:
    """The arguments of the tasks [first, last)."""
    T = arguments["tasks"]
    batch_of_all, steps = check_batches(arguments["train_batches"], arguments.get("steps"))

    def batch(j: int) -> Any:
        return of_tasks(batch_of_all(j), T, "train_loss", first, last)

    def marked(value: Any, label: str, inside: bool = False) -> Any:
        inside = inside or isinstance(value, PerTask)
        if unmarked(value) is not value:
            return type(value)(marked(value.value, label, inside))
        if isinstance(value, Mapping):
            return {k: v if k == "step" else marked(v, f"{label}[{k!r}]", inside) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(marked(v, f"{label}[{i}]", inside) for i, v in enumerate(value))
        return own(label, value, T)[first:last] if inside and isinstance(value, Tensor) else value

    parts = {name: marked(arguments.get(name), name) for name in ("theta_0", "phi_opt", "phi_loss", "state_0")}
    return {
        **arguments,
        **parts,
        "steps": steps,
        "tasks": last - first,
        "train_batches": batch,
        "val_batch": of_tasks(arguments["val_batch"], T, "val_loss", first, last),
        "among": T,
    }


def _check_chunk(chunk: Any, tasks: int | None, resume: Any) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ArgumentError(explain("chunk", "a number of tasks, at least 1", repr(chunk), "Leave it out for all."))
    if tasks is None:
        raise ArgumentError(explain("chunk", "tasks=T beside it", "None", "Without tasks there is nothing to divide."))
    if resume is not None and chunk < tasks:
        raise ArgumentError(
            explain("chunk", "None where a run is to be resumed", repr(chunk), "Give one of chunk= and resume=.")
        )


def check_schedule(memory: Schedule | None) -> Schedule:
    """The schedule to run; by default `RetainGraphs`, for speed."""
    if memory is None:
        return RetainGraphs(compact=False)
    if not isinstance(memory, Schedule):
        hint = (
            "Call it: memory=gimli.memory.StoreStates()."
            if isinstance(memory, type)
            else "For example gimli.memory.StoreStates()."
        )
        raise ArgumentError(explain("memory", "a schedule of gimli.memory", repr(memory), hint))
    return memory
