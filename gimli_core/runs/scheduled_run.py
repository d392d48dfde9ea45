"""One run of Algorithm 1: a memory schedule's actions, executed over the unroll and the sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, KeysView
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gimli_core import backward_sweep, forward_unroll
from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.choice import Clock
from gimli_core.compiled.pure_steps import Swept as CompiledSwept
from gimli_core.compiled.retained_run import CompiledLoop, Whole
from gimli_core.compiled.steps import CompiledSteps, start
from gimli_core.derivatives.finite import check_end, flaw
from gimli_core.derivatives.first_order import Gradient, evaluate
from gimli_core.environment import Snapshot
from gimli_core.errors import NotFiniteError, ReplayError
from gimli_core.memory.allocator import give_back, long_lived, reusing
from gimli_core.memory.measure import settle
from gimli_core.memory.schedules.actions import Action, Advance, Drop, Keep, Restore, Schedule, Store, Sweep, Validate
from gimli_core.memory.schedules.truncated import truncated
from gimli_core.memory.storage import Storage
from gimli_core.notation import State, Tensors
from gimli_core.record import Event, Kept, Point, Record
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.journal import Journal, demand, rebuilding, state_after
from gimli_core.runs.plain_values import describe, fits, plain_snapshot, snapshot_of
from gimli_core.transforms.tasks import summed

__all__ = ["Execution", "drain"]

Events = Generator[Event, None, None]


def drain(events: Events, *watching: Callable[[Event], None] | None) -> None:
    """Run to the end; each event is shown to those who watch, and then let go."""
    for event in events:
        for watch in watching:
            if watch is not None:
                watch(event)
        del event


class Execution:
    """One run of Algorithm 1: `forward()` to the validation loss, then `backward()`, each a stream of events.

    The stream is what the step-through and the progress display consume; drained, it costs nothing.
    """

    def __init__(
        self,
        inputs: Inputs,
        schedule: Schedule,
        resume: Path | None = None,
        compiled: CompiledSteps | CompiledLoop | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.inputs, self.steps, self.scale = inputs, inputs.steps, inputs.scale
        self.trained = inputs.theta_0.keys()
        self._loop = None if isinstance(compiled, CompiledSteps) else compiled
        self._compiled = compiled if isinstance(compiled, CompiledSteps) else None
        self._clock = clock
        self._journal = None if resume is None else Journal(resume, inputs)
        self._reached = None if self._journal is None else self._journal.load()
        if self._journal is not None and self._reached is not None:
            schedule = self._journal.schedule(self._reached[1]["schedule"], schedule.disk)
        schedule, self._between = settle(schedule, inputs, Execution, self._compiled)
        self._schedule = schedule
        self._done = 0  # actions
        self._start: Snapshot | None = None  # random numbers and buffers before step 0
        self._replays = schedule.replays or inputs.evaluates_again
        self._actions = self._all_actions()
        self._point = Point(0, inputs.theta_0, inputs.state_0, None) if self._compiled is None else start(inputs)
        self._stored = Storage(schedule.disk)
        self._records: dict[int, Record] = {}
        self._gradients: dict[int, Kept] = {}
        self._train_losses: list[Tensor] = []
        self._val_losses: dict[int, Tensor] = {}
        self._last_snapshot: Snapshot | None = None
        self._left: Snapshot | None = None  # of a run with a journal: what `forward` leaves
        self._end: tuple[Tensors, State, Tensors] | None = None
        self._swept = False
        self._B: Tensors = {}
        self._S: State = {}
        self._A_opt = inputs.hyper.zeros()
        self._A_loss = {
            k: torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32))
            for k, v in inputs.phi_loss.items()
        }

    def _all_actions(self) -> Iterator[Action]:
        return truncated(self._schedule, self.inputs.steps, self.inputs.first)

    def forward(self) -> Events:
        """Lines 4-9: up to L_val and B_J."""
        environment = self.inputs.environment
        found = environment.capture()
        self._last_snapshot = self._start = found
        if self._compiled is not None:
            self._compiled.begin()
        try:
            with self._memory():
                if self._loop is not None:
                    done = yield from self._loop.run(self.inputs)
                    if done is not None:
                        self._take(done, found)
                        return
                    environment.restore(found)  # the eager run that names what broke meets what this one met
                if self._reached is not None:
                    yield from self._resume(*self._reached)
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
        if self._swept:
            return
        environment = self.inputs.environment
        found = environment.capture(self._last_snapshot)
        try:
            with self._memory():
                if self._reached is not None and self._point.snapshot is not None:
                    self._return_to(self._point)  # a run that goes on within its sweep
                for action in self._actions:
                    yield from self._run(action)
        except BaseException:
            self._release()
            raise
        finally:
            self._stored.close()
            if self._replays or self._reached is not None:
                environment.restore(found)
            else:
                environment.restore_buffers(found)
        if self._journal is not None:
            self._journal.finish()
        self._close()

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

    def _close(self) -> None:
        """What is left once every step is swept."""
        self._swept = True
        if self._clock is not None:
            self._clock.stop()
        hyper, optimizer = self.inputs.hyper, self.inputs.optimizer
        if not self.inputs.warm:  # s_0 = s_0(phi_opt)
            S_0 = optimizer.split_state(self._S)
            hyper.accumulate(self._A_opt, 0, optimizer.initial_state_pullback(S_0, hyper.at(0), hyper.wanted))

    @property
    def held(self) -> tuple[KeysView[int], KeysView[int]]:
        """What memory holds now: the steps whose point is stored, and those whose graph is kept."""
        return self._stored.keys(), self._records.keys()

    @property
    def val_loss(self) -> Tensor:
        """L = Σ_j w_j L_val(theta_j), once `forward` is through."""
        return self._reduced(self._weighted())

    def _reduced(self, of_each: Tensor) -> Tensor:
        """One number, of all tasks if there are any."""
        return of_each if self.inputs.tasks is None else of_each.sum() * self.inputs.scale

    def _weighted(self) -> Tensor:
        """Σ_j w_j L_val(theta_j), of each task if there are any."""
        each = [w * self._val_losses[j] for j, w in enumerate(self.inputs.weights) if w is not None]
        return torch.stack(each).sum(0)

    def trajectory(self) -> Trajectory:
        """Where the inner loop went, once `forward` is through."""
        assert self._end is not None
        theta_J, state_J, buffers_J = self._end
        of_each = self._weighted()
        nan = torch.full_like(of_each, float("nan"))
        return Trajectory(
            val_loss=self._reduced(of_each),
            theta_J={**self.inputs.frozen, **theta_J},
            state_J=self.inputs.optimizer.split_state(state_J),
            buffers_J=buffers_J,
            train_losses=torch.stack(self._train_losses) if self._train_losses else nan.new_empty((0, *nan.shape)),
            val_losses=torch.stack([self._val_losses.get(j, nan) for j in range(self.inputs.steps + 1)]),
            task_val_losses=None if self.inputs.tasks is None else of_each,
            approximation=self.inputs.approximation,
        )

    def result(self) -> MetaGradient:
        """The result, once `backward` is through."""
        B_0, S_0, tasks = self._B, self.inputs.optimizer.split_state(self._S), self.inputs.tasks
        if tasks is not None:  # what the tasks share gets the sum over them
            B_0 = B_0 if tasks.theta else summed(B_0)
            S_0 = S_0 if tasks.state or not self.inputs.warm else summed(S_0)
        return MetaGradient(
            **vars(self.trajectory()),
            A_opt=self.inputs.hyper.join(self._A_opt),
            A_loss=self._A_loss,
            B_0=dict(B_0),
            S_0=S_0,
            recurrence=self.inputs.recurrence,
        )

    def _take(self, done: Whole, found: Snapshot) -> None:
        """Take over what a compiled loop has computed."""
        inputs, environment = self.inputs, self.inputs.environment
        buffers = environment.copies()
        environment.restore_buffers(found)
        self._train_losses, self._val_losses = done.train_losses, done.val_losses
        self._end = (done.theta, done.s, buffers)
        self._B, self._S, self._A_loss = done.B, done.S, done.A_loss
        for j, A_j in zip(reversed(range(inputs.steps)), done.A_opt, strict=False):
            inputs.hyper.accumulate(self._A_opt, j, A_j)
        self._close()

    def _run(self, action: Any) -> Events:
        self._between()
        yield from self._execute(action)
        self._done += 1
        if self._journal is not None and self._journal.due():
            self._write(self._journal)

    def _execute(self, action: Any) -> Events:
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

    def _write(self, journal: Journal) -> None:
        """Write what the run has reached."""
        points = [self._stored.get(j) for j in self._stored]
        if not self._records and self._point.j not in self._stored:
            points.append(self._marked())
        losses = {"train": torch.stack(self._train_losses) if self._train_losses else torch.empty(0)}
        tree = {"B": self._B, "S": self._S, "A_loss": self._A_loss, "losses": losses}
        tree |= {"A_opt": {str(i): a for i, a in enumerate(self._A_opt)}}
        tree |= {"val_losses": {str(j): loss for j, loss in self._val_losses.items()}}
        tree["end"] = {} if self._end is None else dict(zip(("theta", "state", "buffers"), self._end, strict=True))
        assert self._start is not None
        buffers, generators = plain_snapshot(self._start)
        extra = {"done": self._done, "point": self._point.j, "schedule": describe(self._schedule)}
        extra |= {"generators": generators, "validated": self._end is not None}
        extra |= {"left": [] if self._left is None else plain_snapshot(self._left)[1]}
        journal.write(points, {**tree, "start": buffers}, extra)

    def _resume(self, tree: dict[str, Any], extra: dict[str, Any]) -> Events:
        """Be where an earlier run was: graphs that it held are computed again."""
        journal, environment, zeros = self._journal, self.inputs.environment, (self._A_opt, self._A_loss)
        assert journal is not None
        with journal.reading():
            self._B, self._S, self._A_loss = tree["B"], tree["S"], tree["A_loss"]
            self._A_opt = [tree["A_opt"][str(i)] for i in range(len(self._A_opt))]
            self._train_losses = list(tree["losses"]["train"].unbind())
            self._val_losses = {int(j): loss for j, loss in tree["val_losses"].items()}
            self._start = snapshot_of(tree["start"], extra["generators"], environment)
            if extra["validated"]:
                self._end = tree["end"]["theta"], tree["end"]["state"], tree["end"]["buffers"]
                self._left = snapshot_of(tree["start"], extra["left"], environment)
            self._done = extra["done"]
            stored, records = state_after(done := list(islice(self._all_actions(), self._done)))
            steps_run = max((action.j + 1 for action in done if isinstance(action, Advance)), default=0)
            needed = {*stored, *(() if records else (extra["point"],))}
            demand(set(extra["points"]) == needed, "points")
            demand(len(done) == self._done and len(self._train_losses) == steps_run, "numbers of actions")
            demand(any(isinstance(action, Validate) for action in done) == extra["validated"], "places in the run")
            demand(fits(dict(enumerate(self._A_opt)), dict(enumerate(zeros[0]))), "names or shapes of A_opt")
            demand(fits(self._A_loss, zeros[1]), "names or shapes of A_loss")
            demand(fits(self._B, self._point.theta if extra["validated"] else {}), "names or shapes of B")
        first = self._point._replace(snapshot=self._start)
        for j, tier in stored.items():
            self._stored.put(journal.point(j, first), tier)
        next(islice(self._actions, self._done, self._done), None)
        point = extra["point"]
        if records:
            point, actions = rebuilding(stored, records)
        self._point = self._stored.get(point) if point in stored else journal.point(point, first) if point else first
        self._return_to(self._point)
        for action in actions if records else ():
            yield from self._execute(action)
        if self._left is not None:  # whatever was run again, `forward` leaves what it left, and `backward` returns
            self._marked()
            environment.restore(self._left)

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
        recorded = keep is Keep.GRAPH
        keep_graph = recorded and self.inputs.keeps_graph
        kept, point = self._at_kept(self._point, restore=recorded or self._compiled is not None)
        j = point.j
        replay = j < len(self._train_losses)
        validation = None
        again = self.inputs.evaluates_again or (self._compiled is not None and self._compiled.draws)
        if keep is Keep.GRADIENT or (recorded and again):
            point = self._marked()
        if self.inputs.weights[j] is not None and (recorded or not replay):
            point = self._marked()
            if recorded:
                validation = self._validation_gradient(point)
            self._val_losses[j] = self._validation_value(point) if validation is None else validation.loss
            self._return_to(point)
        known = None if kept is None or keep_graph else kept.gradient
        if self._compiled is not None:  # from theta_j again, for the same bits as in the first run
            G_j, self._point = yield from self._compiled.advance(self.inputs, point, replay=replay)
        else:
            G_j, self._point = yield from forward_unroll.step(
                self.inputs, point, keep_graph=keep_graph, replay=replay, known=known
            )
        self._note_loss(j, G_j.loss)
        if recorded:
            self._records[j] = Record(point, G_j, validation)
        if keep is Keep.GRADIENT:
            assert point.snapshot is not None
            if self._apart:
                G_j = self._copied(G_j)
            self._gradients[j] = Kept(G_j, point.snapshot)

    @property
    def _apart(self) -> bool:
        """Whether what stays is mapped apart from what lives within a step (NOTE [heap holes] in allocator.py)."""
        return self._schedule.compact and self._compiled is None

    def _copied(self, G_j: Gradient) -> Gradient:
        """G_j apart from the heap that it was made on."""
        optimizer = self.inputs.optimizer
        with long_lived():
            return G_j._replace(theta=optimizer.unpack(tree_map(torch.clone, optimizer.pack(G_j.theta))))

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

    def _validation_gradient(self, point: Point) -> Gradient:
        if self._compiled is not None:
            return self._compiled.validation_gradient(self.inputs, point)
        return backward_sweep.validation_gradient(self.inputs, point)

    def _validation_value(self, point: Point) -> Tensor:
        inputs = self.inputs
        if self._compiled is not None:  # the kernel of the sweep, so that every schedule has the same bits
            return self._compiled.validation_gradient(inputs, point).loss
        with torch.enable_grad():  # without it some modules take another path, and the last bits change
            theta = {**inputs.frozen, **{k: v.detach().requires_grad_() for k, v in point.theta.items()}}
            return evaluate(inputs.problem.val_loss, "val_loss", theta, inputs.phi_loss, inputs.val_batch).detach()

    def _note_loss(self, j: int, loss: Tensor, *, exact: bool = True) -> None:
        """Keep the loss of a first run; hold a replay against it."""
        if j == len(self._train_losses):
            self._train_losses.append(loss)
            return
        first = self._train_losses[j]
        if exact and loss.device.type == "cpu" and self._compiled is None:
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
        inputs, J = self.inputs, self.inputs.steps
        point = self._point
        self._end = (point.theta, point.state, inputs.environment.copies())
        self._S = inputs.optimizer.zero_adjoint(point.state)
        check_end(point.theta, self._train_losses)
        self._B = {k: torch.zeros_like(v) for k, v in point.theta.items()}
        if inputs.weights[J] is not None:
            L = self._validation_gradient(point)
            self._val_losses[J] = L.loss
            self._add_validation(J, L)
        if not bool(torch.isfinite(self.val_loss)):
            raise NotFiniteError(
                f"val_loss: expected a finite number; got {self.val_loss.item():g}, though theta_{J} is finite. "
                f"{flaw(inputs.val_batch)}Look at val_loss and val_batch."
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
        w = self.inputs.weights[j]
        assert w is not None
        w *= self.inputs.scale
        self._B = {k: torch.add(v, L.theta[k], alpha=w) for k, v in self._B.items()}
        for k, explicit in L.phi_loss.items():
            self._A_loss[k].add_(explicit, alpha=w)

    def _sweep(self, j: int) -> Events:
        inputs = self.inputs
        record = self._records.pop(j, None)
        replay = record is None
        if record is None:
            kept, point = self._at_kept(self._point, restore=True)
            if inputs.weights[j] is not None or inputs.evaluates_again:
                point = self._marked()
            G_j, validation = (None if kept is None or inputs.keeps_graph else kept.gradient), None
        else:
            point, G_j, validation = record
            if point.snapshot is not None and self._compiled is not None:
                self._return_to(point)
        del record
        self._gradients.pop(j, None)
        swept: backward_sweep.Swept | CompiledSwept
        if self._compiled is not None:
            swept = yield from self._compiled.sweep(inputs, point, self._B, self._S, replay=replay)
        else:
            if replay:
                G_j = yield from self._gradient_again(point, G_j)
            assert G_j is not None
            swept = yield from backward_sweep.step(inputs, point, G_j, self._B, self._S, replay=replay)
        if swept.loss is not None:
            self._note_loss(j, swept.loss, exact=False)
        self._B, self._S = swept.B, swept.S
        inputs.hyper.accumulate(self._A_opt, j, swept.A_opt)
        for k, increment in swept.A_loss.items():
            self._A_loss[k] += increment
        if inputs.weights[j] is not None:
            if validation is None:
                self._return_to(point)
                validation = self._validation_gradient(point)
            self._add_validation(j, validation)
            yield from self._announce(j)

    def _gradient_again(self, point: Point, G_j: Gradient | None) -> Generator[Event, None, Gradient]:
        """Line 5 of a step whose graph was not kept, or not made; G_j where it is known."""
        if G_j is None:
            G_j = forward_unroll.inner_gradient(self.inputs, point, keep_graph=self.inputs.keeps_graph)
            self._note_loss(point.j, G_j.loss)
        computed = Event(5, point.j, {"loss": G_j.loss, "G": G_j.theta}, True, {"theta": point.theta})
        yield computed
        return G_j._replace(theta=computed.values["G"])
