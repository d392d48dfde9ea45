"""One run of Algorithm 1: a memory schedule's actions, executed over the unroll and the sweep.

The actions themselves are executed by `Execution`; here a run begins, goes on from its journal, and ends.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.environment import Snapshot
from gimli_core.errors import unexpected
from gimli_core.memory.allocator import give_back, reusing
from gimli_core.memory.schedules.actions import Action, Schedule, Validate
from gimli_core.notation import Tensors
from gimli_core.record import Ends, Outcome
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.adjoints import Adjoints
from gimli_core.runs.eager_steps import Steps
from gimli_core.runs.execution import Execution
from gimli_core.runs.journal import Journal
from gimli_core.runs.outcome import finished, losses_of, outcome_of, stacked, trajectory
from gimli_core.runs.resuming import resume, write
from gimli_core.runs.run import Events

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
        weighed: whether `backward` is told how much each outer loss counts, if there are several.
    """

    def __init__(
        self,
        inputs: Inputs,
        schedule: Schedule,
        steps: Steps,
        journal: Journal | None = None,
        between: Callable[[], None] = lambda: None,
        *,
        weighed: bool = False,
    ) -> None:
        self.inputs, self.form, self.steps = inputs, inputs.form, inputs.form.steps
        self.environment = inputs.environment
        self.schedule, self._by = schedule, steps
        self._journal, self._between = journal, between
        self._replays = schedule.replays or inputs.form.evaluates_again or steps.draws
        self._resumed = journal is not None and journal.reached is not None
        self.reached = Execution(inputs, schedule, steps, weighed=weighed)
        self._actions = self.reached.actions()
        self._done = 0  # actions
        self._left: Snapshot | None = None  # of a run with a journal: the environment that `forward` leaves
        self._outcomes: list[Outcome] = []  # of each outer loss

    def forward(self) -> Events:
        """Lines 4-9: up to L_val and B_J."""
        environment = self.inputs.environment
        with_generators = self._replays or self._journal is not None
        before = environment.capture() if with_generators else environment.capture_buffers()
        self.reached.working.begin(self._by.begin(self.inputs), before)
        try:
            with self._memory():
                if self._journal is not None and self._resumed:
                    self._done, self._left, again = resume(self.reached, self._journal)
                    next(islice(self._actions, self._done, self._done), None)
                    for action in again:
                        yield from self.reached.execute(action)
                    if self._left is not None:  # whatever was run again, `forward` leaves what it left
                        self.reached.working.marked()
                        environment.restore(self._left)
                for action in self._actions if self.reached.end is None else ():
                    yield from self._run(action)
                    if isinstance(action, Validate):
                        break
        except BaseException:
            self._release()
            raise
        finally:
            environment.restore_buffers(before)

    def backward(self, along: Tensor | None = None) -> Events:
        """Lines 10-14: from B_J to B_0, for each outer loss, or for `along · L` where the run is `weighed`.

        Random number generators and buffers are left as they were met.
        """
        environment = self.inputs.environment
        weighed = self.reached.weighed and self.reached.vector
        with_generators = self._replays or self._resumed or weighed
        before = self.reached.working.captured() if with_generators else environment.capture_buffers()
        try:
            with self._memory():
                if self._resumed and self.reached.working.at.snapshot is not None:
                    self.reached.working.return_to(self.reached.working.at)  # a run that goes on within its sweep
                if weighed:
                    assert along is not None
                    yield from self.reached.weigh(along)
                for action in self._actions:
                    yield from self._run(action)
                self.reached.losses.check_replays()
        except BaseException:
            self._release()
            raise
        finally:
            self.reached.stored.close()
            if with_generators:
                environment.restore(before)
            else:
                environment.restore_buffers(before)
        if self._journal is not None:
            self._journal.finish()
        losses = self.reached.losses
        for A in self.reached.adjoints:
            ends, buffers = self._ends(A)
            outcome = outcome_of(self.inputs, ends, losses.train, losses.val, buffers, A.A_opt, A.A_loss_with_rows())
            self._outcomes.append(outcome._replace(aux=losses.aux()))

    def _release(self) -> None:
        """Let go of what outlives the process: what is stored on disk, and the journal's directory."""
        self.reached.stored.close()
        if self._journal is not None:
            self._journal.close()

    def _memory(self) -> AbstractContextManager[None]:
        """NOTE [memory kept for reuse] in allocator.py, where the least memory is not asked for."""
        if not self.schedule.compact:
            return reusing()
        give_back()
        return nullcontext()

    @property
    def in_memory(self) -> tuple[KeysView[int], KeysView[int]]:
        """The steps whose point is stored, and those whose graph is kept."""
        return self.reached.stored.keys(), self.reached.records.keys()

    @property
    def val_loss(self) -> Tensor:
        """L = Σ_j w_j L_val(theta_j), once `forward` is through."""
        return self.reached.losses.outer(self.inputs)

    def trajectory(self) -> Trajectory:
        """Where the inner loop went, once `forward` is through."""
        ends, buffers = self._ends(self.reached.adjoints[0])
        losses = losses_of(self.inputs, self.reached.losses.train, self.reached.losses.val)
        outcome = Outcome(*losses, self.form.back(ends), buffers, [], {}, self.reached.losses.aux())
        return trajectory(self.form, self.inputs.values.frozen, outcome)

    def result(self) -> MetaGradient:
        """The result, once `backward` is through."""
        values = self.inputs.values
        results = [finished(self.form, values.frozen, values.hyper, outcome) for outcome in self._outcomes]
        return stacked(results) if self.reached.vector and not self.reached.weighed else results[0]

    def _ends(self, A: Adjoints) -> tuple[Ends, Tensors]:
        """theta_J, s_J, B and S of an outer loss, and the buffers."""
        assert self.reached.end is not None
        theta_J, s_J, buffers = self.reached.end
        return Ends(theta_J, s_J, A.B, A.S), buffers

    def _run(self, action: Action) -> Events:
        self._between()
        yield from self.reached.execute(action)
        self._done += 1
        if self._journal is None:
            return
        if any(aux is not None for aux in self.reached.losses.aux()):
            actual, do = "a loss that returns (loss, aux)", "Return the loss alone, or run it without resume=."
            raise unexpected("resume", "losses without aux, which a journal does not keep", actual, do)
        if isinstance(action, Validate):
            self._left = self.reached.working.captured()
        if self._journal.due():
            write(self.reached, self._journal, self._done, self._left)
