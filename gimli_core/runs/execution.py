"""The actions of a memory schedule, executed: what a run has reached, and how each action takes it on.

How a run advances. There is one working point, (theta_j, s_j). `Advance` takes it through step j; what stays of the
step (nothing, G_j, or its record with the graph of G_j) is what the schedule says. `Store` and `Restore` put the
working point aside and take it up again, with the random numbers and buffers that its step met, so that a step that is
run again is the step that was run. `Sweep` takes B_{j+1}, S_{j+1} to B_j, S_j from the record of step j or, where there
is none, from the working point j. Which lines of Algorithm 1 that means, eager or compiled, the `Steps` know that the
run is handed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.finite import check_end
from gimli_core.derivatives.first_order import Gradient
from gimli_core.errors import unexpected
from gimli_core.layout import cloned
from gimli_core.memory.allocator import long_lived
from gimli_core.memory.schedules.actions import Action, Advance, Drop, Keep, Restore, Schedule, Store, Sweep, Validate
from gimli_core.memory.schedules.truncated import truncated
from gimli_core.memory.storage import Storage
from gimli_core.notation import State, Tensors
from gimli_core.record import Event, Kept, Record
from gimli_core.runs.adjoints import Adjoints
from gimli_core.runs.eager_steps import Steps
from gimli_core.runs.losses import Losses
from gimli_core.runs.run import Events
from gimli_core.runs.working_point import WorkingPoint

__all__ = ["Execution"]


class Execution:
    """What one run has reached; `execute` takes it on by one action.

    Attributes:
        working: the point that it is at.
        stored: points that were put aside.
        records: steps whose graph, or whose point and G_j, stay in memory.
        end: theta_J, s_J and the buffers, once L_val is known.
        adjoints: those of each outer loss, from then on; one alone where `along` says how much each counts.
        weighed: whether `along` is to come, if there are several.
    """

    def __init__(self, inputs: Inputs, schedule: Schedule, steps: Steps, *, weighed: bool = False) -> None:
        self.weighed = weighed
        self.along: Tensor | None = None
        self.inputs, self.form, self.schedule, self.by = inputs, inputs.form, schedule, steps
        # Whether what stays is mapped apart from what lives within a step: NOTE [heap holes] in allocator.py.
        self._apart = schedule.compact and steps.eager
        self.working = WorkingPoint(inputs.environment)
        self.stored = Storage(schedule.disk, inputs.form.stores_parts)
        self.records: dict[int, Record] = {}
        self.losses = Losses()
        self.end: tuple[Tensors, State, Tensors] | None = None
        self.adjoints: list[Adjoints] = []

    def actions(self) -> Iterator[Action]:
        """The schedule's actions, from the first."""
        return truncated(self.schedule, self.form.steps, self.form.first)

    def execute(self, action: Action) -> Events:
        """One action, and an event at each line of Algorithm 1 that it means."""
        match action:
            case Advance(_, keep):
                with long_lived() if keep is Keep.GRAPH and self._apart else nullcontext():
                    yield from self._advance(keep)
            case Sweep(j):
                yield from self._sweep(j)
            case Store(_, tier):
                self.stored.put(self.working.marked(), tier)
            case Restore(j):
                self.working.at = self.stored.get(j)
                self.working.return_to(self.working.at)
            case Drop(j):
                self.stored.drop(j)
            case Validate():
                yield from self._validate()

    def _advance(self, keep: Keep) -> Events:
        inputs, form, working = self.inputs, self.form, self.working
        recorded = keep is Keep.GRAPH
        keep_graph = recorded and form.keeps_graph
        kept = working.at_gradient(restore=recorded or not self.by.eager)
        point = working.at
        j = point.j
        replay = j < len(self.losses.train)
        validation = None
        if keep is Keep.GRADIENT or (recorded and (form.evaluates_again or self.by.draws)):
            point = working.marked()
        if form.weighted[j] and (recorded or not replay):
            point = working.marked()
            if recorded:
                L, validation = self.by.validation(inputs, point, rows=not self.weighed)
                self.losses.note_outer(j, L)
            else:
                self.losses.note_outer(j, self.by.validation_value(inputs, point))
            working.return_to(point)
        kept_gradient = None if kept is None or keep_graph else kept.gradient
        G_j, after = yield from self.by.advance(
            inputs, point, keep_graph=keep_graph, replay=replay, kept_gradient=kept_gradient
        )
        working.at = after
        self.losses.note_inner(j, G_j, exact=self.by.eager)
        if recorded:
            self.records[j] = Record(point, G_j, validation)
        if keep is Keep.GRADIENT:
            assert point.snapshot is not None
            if self._apart:
                with long_lived():  # apart from the heap that it was made on
                    G_j = G_j._replace(theta=cloned(G_j.theta))
            working.gradients[j] = Kept(G_j, point.snapshot)

    def _validate(self) -> Events:
        inputs, J = self.inputs, self.form.steps
        point = self.working.marked() if self.weighed else self.working.at
        self.end = (point.theta, point.state, inputs.environment.copies())
        check_end(self.form.gathered(point.theta, "theta_J, before L_val"), self.losses.train, self.form.names)
        validation = None
        if self.form.weighted[J]:
            of_L, validation = self.by.validation(inputs, point, rows=not self.weighed)
            self.losses.note_outer(J, of_L)
        if self.form.mesh is not None and self.form.mesh.shard is not None:
            self.losses.check_ranks(self.form.mesh.shard)
        self.losses.check_outer(inputs)
        L = self.losses.outer(inputs)
        rows = self.rows
        self.adjoints = [Adjoints(inputs, point) for _ in range(rows)]
        if validation:
            self._add_validation(J, validation)
        for row, A in enumerate(self.adjoints):
            yield Event(8, J, {"loss": L, "A_opt": A.A_opt, "A_loss": A.A_loss}, row=row, rows=rows)
        yield from self._announce(J)

    @property
    def vector(self) -> bool:
        """Whether val_loss returns a vector; once L_val is known."""
        return self.losses.outer(self.inputs).ndim > 0

    @property
    def rows(self) -> int:
        """How many adjoints there are; once L_val is known."""
        return 1 if self.weighed else self.losses.outer(self.inputs).numel()

    def weigh(self, along: Tensor) -> Events:
        """Lines 8 and 9 of a vector, once it is known how much each outer loss counts: `along`, [k].

        One that went on within its sweep must be told the same as before.
        """
        if self.along is not None:
            if not torch.equal(self.along, along):
                actual, do = "another one than the run that was killed had", "Call as when the run was begun."
                raise unexpected("resume", "the same gradient of L to arrive at it", actual, do)
            return
        self.along = along
        J = self.form.steps
        if self.form.weighted[J]:
            self.working.return_to(self.working.at)
            self._add_validation(J, self.by.validation(self.inputs, self.working.at, along)[1])
            yield from self._announce(J)

    def _add_validation(self, j: int, validation: list[Gradient]) -> None:
        for A, L in zip(self.adjoints, validation, strict=True):
            A.add_validation(j, L)

    def _announce(self, j: int) -> Events:
        """Line 9: B_j and S_j with the gradient of L_val(theta_j) in them."""
        for row, A in enumerate(self.adjoints):
            computed = Event(9, j, {"B": A.B, "S": A.S}, row=row, rows=len(self.adjoints))
            yield computed
            A.B, A.S = computed.values["B"], computed.values["S"]

    def _sweep(self, j: int) -> Events:
        inputs, form, working = self.inputs, self.form, self.working
        record = self.records.pop(j, None)
        replay = record is None
        if record is None:
            kept = working.at_gradient(restore=True)
            point = working.marked() if form.weighted[j] or form.evaluates_again else working.at
            G_j, validation = (None if kept is None or form.keeps_graph else kept.gradient), None
        else:
            point, G_j, validation = record
            if point.snapshot is not None and not self.by.eager:
                working.return_to(point)
        del record
        working.gradients.pop(j, None)
        again = yield from self.by.sweep(inputs, point, G_j, self.adjoints, replay=replay)
        del G_j
        if again.exactly is not None:
            self.losses.note(j, again.exactly, exact=True)
        if again.roughly is not None:
            self.losses.note(j, again.roughly, exact=False)
        if form.weighted[j]:
            if not validation:
                working.return_to(point)
                _, validation = self.by.validation(inputs, point, self.along)
            self._add_validation(j, validation)
            yield from self._announce(j)
