"""One run of Algorithm 1: a memory schedule's actions, executed over the unroll and the sweep.

How a run advances. There is one working point, (theta_j, s_j). `Advance` takes it through step j; what stays of the
step (nothing, G_j, or its record with the graph of G_j) is what the schedule says. `Store` and `Restore` put the
working point aside and take it up again, with the random numbers and buffers that its step met, so that a step that is
run again is the step that was run. `Sweep` takes B_{j+1}, S_{j+1} to B_j, S_j from the record of step j or, where there
is none, from the working point j. Which lines of Algorithm 1 that means, eager or compiled, the `Steps` know that the
run is handed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, KeysView
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.finite import check_end, flaw
from gimli_core.derivatives.first_order import Gradient
from gimli_core.environment import Snapshot
from gimli_core.errors import NotFiniteError, ReplayError
from gimli_core.memory.allocator import give_back, long_lived, reusing
from gimli_core.memory.schedules.actions import Action, Advance, Drop, Keep, Restore, Schedule, Store, Sweep, Validate
from gimli_core.memory.schedules.truncated import truncated
from gimli_core.memory.storage import Storage
from gimli_core.notation import State, Tensors
from gimli_core.record import Ends, Event, Kept, Outcome, Point, Record
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.eager_steps import Steps
from gimli_core.runs.journal import Journal
from gimli_core.runs.outcome import finished, losses_of, outcome_of, reduced, trajectory, weighted
from gimli_core.runs.resuming import resume, write
from gimli_core.runs.run import Events
from gimli_core.trees import cloned

__all__ = ["ScheduledRun"]


class ScheduledRun:
    """One run: `forward()` to the validation loss, then `backward()`, each a stream of events.

    The stream is what the step-through and the progress display consume; drained, it costs nothing.

    Args:
        inputs: what is run.
        schedule: whose actions are executed.
        steps: what executes single lines.
        journal: where a resumable run is noted, if it is one.
        between: called before every action: a budget's watch over free holes.
    """

    def __init__(
        self, inputs: Inputs, schedule: Schedule, steps: Steps, journal: Journal | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.inputs, self.form, self.steps = inputs, inputs.form, inputs.form.steps
        self._by, self._schedule, self._journal, self._between = steps, schedule, journal, between
        self._replays = schedule.replays or inputs.form.evaluates_again
        self._actions = self._all_actions()
        self._done = 0  # actions
        self._start: Snapshot | None = None  # random numbers and buffers before step 0
        self._last_snapshot: Snapshot | None = None
        self._left: Snapshot | None = None  # of a run with a journal: what `forward` leaves
        self._resumed = journal is not None and journal.reached is not None
        self._point = Point(0, {}, {}, None)
        self._stored = Storage(schedule.disk)
        self._records: dict[int, Record] = {}
        self._gradients: dict[int, Kept] = {}
        self._train_losses: list[Tensor] = []
        self._val_losses: dict[int, Tensor] = {}
        self._end: tuple[Tensors, State, Tensors] | None = None  # theta_J, s_J, buffers
        self._B: Tensors = {}
        self._S: State = {}
        self._A_opt = inputs.values.hyper.zeros()
        self._A_loss = {
            k: torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32))
            for k, v in inputs.values.phi_loss.items()
        }
        self._outcome: Outcome | None = None

    def _all_actions(self) -> Iterator[Action]:
        return truncated(self._schedule, self.form.steps, self.form.first)

    def forward(self) -> Events:
        """Lines 4-9: up to L_val and B_J."""
        environment = self.inputs.environment
        found = environment.capture()
        self._last_snapshot = self._start = found
        self._point = self._by.begin(self.inputs)
        try:
            with self._memory():
                if self._journal is not None and self._resumed:
                    for action in resume(self, self._journal):
                        yield from self._execute(action)
                    if self._left is not None:  # whatever was run again, `forward` leaves what it left
                        self._marked()
                        environment.restore(self._left)
                for action in self._actions if self._end is None else ():
                    yield from self._run(action)
                    if isinstance(action, Validate):
                        break
        except BaseException:
            self._release()
            raise
        finally:
            environment.restore_buffers(found)

    def backward(self) -> Events:
        """Lines 10-14: from B_J to B_0. Random number generators and buffers are left as found."""
        environment = self.inputs.environment
        found = environment.capture(self._last_snapshot)
        try:
            with self._memory():
                if self._resumed and self._point.snapshot is not None:
                    self._return_to(self._point)  # a run that goes on within its sweep
                for action in self._actions:
                    yield from self._run(action)
        except BaseException:
            self._release()
            raise
        finally:
            self._stored.close()
            if self._replays or self._resumed:
                environment.restore(found)
            else:
                environment.restore_buffers(found)
        if self._journal is not None:
            self._journal.finish()
        theta_J, s_J, buffers_J = self._ended
        ends = Ends(theta_J, s_J, self._B, self._S)
        losses = self._train_losses, self._val_losses
        self._outcome = outcome_of(self.inputs, ends, *losses, buffers_J, self._A_opt, self._A_loss)

    def _release(self) -> None:
        """Let go of what outlives the process: what is stored on disk, and the journal's directory."""
        self._stored.close()
        if self._journal is not None:
            self._journal.close()

    def _memory(self) -> AbstractContextManager[None]:
        """NOTE [memory kept for reuse] in allocator.py, where the least memory is not asked for."""
        if not self._schedule.compact:
            return reusing()
        give_back()
        return nullcontext()

    @property
    def held(self) -> tuple[KeysView[int], KeysView[int]]:
        """What memory holds now: the steps whose point is stored, and those whose graph is kept."""
        return self._stored.keys(), self._records.keys()

    @property
    def val_loss(self) -> Tensor:
        """L = Σ_j w_j L_val(theta_j), once `forward` is through."""
        return reduced(self.form, weighted(self.inputs.values.weights, self._val_losses))

    def trajectory(self) -> Trajectory:
        """Where the inner loop went, once `forward` is through."""
        theta_J, s_J, buffers_J = self._ended
        ends = self.form.back(Ends(theta_J, s_J, self._B, self._S))
        losses = losses_of(self.inputs, self._train_losses, self._val_losses)
        return trajectory(self.form, self.inputs.values.frozen, Outcome(*losses, ends, buffers_J, [], {}))

    def result(self) -> MetaGradient:
        """The result, once `backward` is through."""
        assert self._outcome is not None
        values = self.inputs.values
        return finished(self.form, values.frozen, values.hyper, self._outcome)

    @property
    def _ended(self) -> tuple[Tensors, State, Tensors]:
        assert self._end is not None
        return self._end

    def _run(self, action: Action) -> Events:
        self._between()
        yield from self._execute(action)
        self._done += 1
        if self._journal is not None and self._journal.due():
            write(self, self._journal)

    def _execute(self, action: Action) -> Events:
        match action:
            case Advance(_, Keep.GRAPH) if self._apart:
                with long_lived():
                    yield from self._advance(Keep.GRAPH)
            case Advance(_, keep):
                yield from self._advance(keep)
            case Store(_, tier):
                self._stored.put(self._marked(), tier)
            case Restore(j):
                self._point = self._stored.get(j)
                self._return_to(self._point)
            case Drop(j):
                self._stored.drop(j)
            case Validate():
                yield from self._validate()
                if self._journal is not None:
                    self._left = self.inputs.environment.capture(self._last_snapshot)
            case Sweep(j):
                yield from self._sweep(j)

    def _marked(self) -> Point:
        """The working point with a snapshot of the environment."""
        if self._point.j in self._gradients:  # a replay from a kept G_j has not moved what the loss would have
            self._point = self._point._replace(snapshot=self._gradients[self._point.j].snapshot)
        elif self._point.snapshot is None:
            self._last_snapshot = self.inputs.environment.capture(self._last_snapshot)
            self._point = self._point._replace(snapshot=self._last_snapshot)
        return self._point

    def _return_to(self, point: Point) -> None:
        assert point.snapshot is not None
        self.inputs.environment.restore(point.snapshot)

    def _advance(self, keep: Keep) -> Events:
        inputs, form = self.inputs, self.form
        recorded = keep is Keep.GRAPH
        keep_graph = recorded and form.keeps_graph
        kept, point = self._at_kept(self._point, restore=recorded or not self._by.eager)
        j = point.j
        replay = j < len(self._train_losses)
        validation = None
        if keep is Keep.GRADIENT or (recorded and (form.evaluates_again or self._by.draws)):
            point = self._marked()
        if form.weighted[j] and (recorded or not replay):
            point = self._marked()
            if recorded:
                validation = self._by.validation_gradient(inputs, point)
                self._val_losses[j] = validation.loss
            else:
                self._val_losses[j] = self._by.validation_value(inputs, point)
            self._return_to(point)
        known = None if kept is None or keep_graph else kept.gradient
        G_j, self._point = yield from self._by.advance(inputs, point, keep_graph=keep_graph, replay=replay, known=known)
        self._note_loss(j, G_j.loss, exact=self._by.eager)
        if recorded:
            self._records[j] = Record(point, G_j, validation)
        if keep is Keep.GRADIENT:
            assert point.snapshot is not None
            if self._apart:
                with long_lived():  # apart from the heap that it was made on
                    G_j = G_j._replace(theta=cloned(G_j.theta))
            self._gradients[j] = Kept(G_j, point.snapshot)

    @property
    def _apart(self) -> bool:
        """Whether what stays is mapped apart from what lives within a step (NOTE [heap holes] in allocator.py)."""
        return self._schedule.compact and self._by.eager

    def _at_kept(self, point: Point, *, restore: bool) -> tuple[Kept | None, Point]:
        """What was kept of the point's step, and the point with the environment of its first run.

        A step that is run again from G_j alone leaves the environment behind; where the loss
        is needed again, the environment is restored first.
        """
        kept = self._gradients.get(point.j)
        if kept is not None:
            self._point = point = point._replace(snapshot=kept.snapshot)
            if restore:
                self._return_to(point)
        return kept, point

    def _note_loss(self, j: int, loss: Tensor, *, exact: bool) -> None:
        """Keep the loss of a first run; hold a replay against it."""
        if j == len(self._train_losses):
            self._train_losses.append(loss)
            return
        first = self._train_losses[j]
        if exact and loss.device.type == "cpu":
            same = torch.equal(first, loss)
        elif loss.ndim == 0:  # atomic additions, forward mode or another compiled function may change the last bits
            same = math.isclose(first.item(), loss.item(), rel_tol=1e-3, abs_tol=1e-8)
        else:
            same = torch.allclose(first, loss, rtol=1e-3)
        if not same:
            raise ReplayError(
                f"train_loss at inner step j = {j}: expected {first.tolist()!r} again when the step is replayed; "
                f"got {loss.tolist()!r}. "
                "Make the loss a function of its arguments, torch's global generator and module buffers, let no other "
                "thread draw from the global generators or change these buffers during the run, or use "
                "memory=RetainGraphs() and second_order='reverse_over_reverse'."
            )

    def _validate(self) -> Events:
        inputs, J = self.inputs, self.form.steps
        point = self._point
        self._end = (point.theta, point.state, inputs.environment.copies())
        self._S = self.form.optimizer.zero_adjoint(point.state)
        check_end(point.theta, self._train_losses, self.form.names)
        self._B = {k: torch.zeros_like(v) for k, v in point.theta.items()}
        if self.form.weighted[J]:
            L = self._by.validation_gradient(inputs, point)
            self._val_losses[J] = L.loss
            self._add_validation(J, L)
        if not bool(torch.isfinite(self.val_loss)):
            raise NotFiniteError(
                f"val_loss: expected a finite number; got {self.val_loss.item():g}, though theta_{J} is finite. "
                f"{flaw(inputs.values.val_batch)}Look at val_loss and val_batch."
            )
        yield Event(8, J, {"loss": self.val_loss, "A_opt": self._A_opt, "A_loss": self._A_loss})
        yield from self._announce(J)

    def _announce(self, j: int) -> Events:
        """Line 9: B_j and S_j with the gradient of L_val(theta_j) in them."""
        computed = Event(9, j, {"B": self._B, "S": self._S})
        yield computed
        self._B, self._S = computed.values["B"], computed.values["S"]

    def _add_validation(self, j: int, L: Gradient) -> None:
        """B_j += w_j grad_theta L_val(theta_j), and A_loss its explicit part."""
        w = self.inputs.values.weights[j]
        assert w is not None
        w *= self.form.scale
        self._B = {k: torch.add(v, L.theta[k], alpha=w) for k, v in self._B.items()}
        for k, explicit in L.phi_loss.items():
            self._A_loss[k].add_(explicit, alpha=w)

    def _sweep(self, j: int) -> Events:
        inputs, form = self.inputs, self.form
        record = self._records.pop(j, None)
        replay = record is None
        if record is None:
            kept, point = self._at_kept(self._point, restore=True)
            if form.weighted[j] or form.evaluates_again:
                point = self._marked()
            G_j, validation = (None if kept is None or form.keeps_graph else kept.gradient), None
        else:
            point, G_j, validation = record
            if point.snapshot is not None and not self._by.eager:
                self._return_to(point)
        del record
        self._gradients.pop(j, None)
        swept = yield from self._by.sweep(inputs, point, G_j, self._B, self._S, replay=replay)
        del G_j
        if swept.same is not None:
            self._note_loss(j, swept.same, exact=True)
        if swept.loss is not None:
            self._note_loss(j, swept.loss, exact=False)
        self._B, self._S = swept.B, swept.S
        inputs.values.hyper.accumulate(self._A_opt, j, swept.A_opt)
        for k, increment in swept.A_loss.items():
            self._A_loss[k] += increment
        if form.weighted[j]:
            if validation is None:
                self._return_to(point)
                validation = self._by.validation_gradient(inputs, point)
            self._add_validation(j, validation)
            yield from self._announce(j)
