"""Algorithm 1 as a stream of moments: the engine's own events, timed, and open to interventions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import closest, listing, unexpected
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.memory.settle import schedule_of_call
from gimli_core.notation import State
from gimli_core.problem import Problem
from gimli_core.processes.mesh import Mesh, check_mesh
from gimli_core.record import Event
from gimli_core.results import MetaGradient
from gimli_core.runs.make_run import make_run
from gimli_core.runs.wants import Wants
from gimli_core.step_through.interventions import CHANGEABLE, Intervention, merged
from gimli_core.step_through.moment import Moment
from gimli_core.transforms.tasks import Tasks

__all__ = ["Moment", "Walk", "step_through"]


class Walk(Iterator[Moment]):
    """A run of Algorithm 1 that advances by one line for each `next`. `result` stands once it is through."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.schedule = schedule_of_call(call)
        self.run = make_run(call, Wants(lines=True, changes=True, one_number="step_through"))
        self.interventions: tuple[Intervention, ...] = ()
        self._changed: dict[Intervention, Any] = {}
        self._latest: Moment | None = None
        self._place = "not begun"
        self._result: MetaGradient | None = None
        self._events = self._run()

    def __repr__(self) -> str:
        form = self.inputs.form
        where = "through" if self._result is not None else self._place
        after = f", after {len(self.interventions)} interventions" if self.interventions else ""
        return f"Walk({type(form.optimizer).__name__}, steps={form.steps}, {where}{after})"

    @property
    def in_memory(self) -> tuple[Collection[int], Collection[int]]:
        """What memory holds now: the steps whose point is stored, and those whose graph is kept."""
        steps: tuple[Collection[int], Collection[int]] = self.run.in_memory  # type: ignore[attr-defined]
        return steps

    @property
    def inputs(self) -> Inputs:
        """What the run works on: its form and its tensors."""
        inputs: Inputs = self.run.inputs  # type: ignore[attr-defined]
        return inputs

    @property
    def result(self) -> MetaGradient:
        """The meta-gradient, as `gimli.meta_gradient` returns it. After an intervention `recurrence` says so."""
        if self._result is None:
            raise unexpected("result", "a walk that reached its last moment", "one under way", "Go on with next(walk).")
        return self._result

    def close(self) -> None:
        """Stop here. Buffers and random number generators are put back as after a whole run."""
        self._events.close()

    def __next__(self) -> Moment:
        self._latest = None  # so that the engine can free what that moment showed
        start = perf_counter()
        event = next(self._events)
        seconds = perf_counter() - start
        self._place = f"at line {event.line} of step {event.j}"
        for made, value in self._changed.items() if event.replay else ():
            if (made.line, made.j) == (event.line, event.j):
                event.values[made.name] = value
        self._latest = Moment(
            event.line,
            event.j,
            event.values,
            event.inputs,
            event.replay,
            seconds,
            self.interventions,
            self._intervene,
            self.run.form.optimizer,
        )
        return self._latest

    def _run(self) -> Generator[Event, None, None]:
        yield from self.run.forward()
        yield from self.run.backward()
        result = self.run.result()
        if self.interventions:
            made = "; ".join(str(i) for i in self.interventions)
            result = replace(result, recurrence=f"{result.recurrence}, with interventions: {made}")
        self._result = result
        joined = {"A_opt": result.A_opt, "A_loss": result.A_loss, "B": result.B_0, "S": result.S_0}
        yield Event(16, 0, joined)

    def _intervene(self, moment: Moment, name: str, value: Any) -> None:
        if moment is not self._latest:
            raise unexpected(
                "change", "the moment that came last", repr(moment), "Change it before the next one is taken."
            )
        allowed = CHANGEABLE.get(moment.line, ())
        if name not in allowed:
            raise unexpected(
                f"change at line {moment.line}",
                f"one of {listing(allowed)}",
                repr(name),
                f"A value is changed at the line that computes it.{closest(name, allowed)}",
            )
        made = Intervention(moment.line, moment.j, name)
        moment.values[name] = merged(moment.values[name], value, name)
        if moment.line in (5, 6):
            self._changed[made] = moment.values[name]
        if made not in self.interventions:
            self.interventions = (*self.interventions, made)


def step_through(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Any] | None = None,
    state_0: State | None = None,
    val_weights: Sequence[float] | Tensor | None = None,
    memory: Schedule | None = None,
    approximation: Approximation | None = None,
    second_order: str = "auto",
    tasks: int | Tasks | None = None,
    resume: str | Path | None = None,
    check: bool = True,
    micro_batches: int | None = None,
    mesh: DeviceMesh | str | None = None,
) -> Walk:
    """Algorithm 1 line by line, as the engine runs it: an iterator with one `Moment` a line.

    Lines 5 and 6 come for each step forwards, 8 and 9 once (9 again for losses along the way), 11 to 14 for
    each step backwards, 16 at the end. A schedule's replayed steps come again, marked `replay`.

    Args: as in `meta_gradient`; with `mesh="data"` all ranks take the same steps, and make the same changes.

    Returns:
        Walk: an iterator. Leave it whenever you like; `walk.close()` puts buffers back at once. At the end
        `walk.result` is what `meta_gradient` returns.

    Raises: what `meta_gradient` raises, at the moment at which it happens.

    Cost: that of `meta_gradient`, and a few microseconds a line.
    Source: Grefenstette et al. 2019, Algorithm 1.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> walk = gimli.step_through(problem, {"w": torch.zeros(1)}, [torch.ones(1)], torch.ones(1), phi_opt={"lr": 0.5})
    >>> [moment.line for moment in walk]
    [5, 6, 8, 9, 11, 12, 13, 14, 16]
    >>> walk.result.A_opt["lr"]
    tensor(-0.5000, dtype=torch.float64)
    """
    return Walk(
        Call(
            problem,
            theta_0,
            train_batches,
            val_batch,
            steps,
            phi_opt,
            phi_loss,
            state_0,
            val_weights,
            memory,
            approximation,
            second_order,
            tasks,
            False,
            resume,
            check,
            micro_batches=micro_batches,
            mesh=_in_step(mesh),
        )
    )


def _in_step(mesh: DeviceMesh | str | None) -> Mesh | None:
    """The mesh of a walk. Raises ArgumentError for one whose ranks are not at the same line with the same tensors."""
    checked = check_mesh(mesh)
    if checked is not None and (checked.tasks is not None or checked.shard is not None):
        do = "Step through one process, or through its own tasks on each."
        raise unexpected("mesh", 'None or "data" where a run is stepped through', "another use of the ranks", do)
    return checked
