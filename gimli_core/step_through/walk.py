"""Algorithm 1 as a stream of moments: the engine's own events, timed, and open to interventions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import closest, listing, unexpected
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.notation import State, Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.problem import Problem
from gimli_core.record import Event
from gimli_core.results import MetaGradient
from gimli_core.runs.make_run import Wants, make_run, schedule_of_call
from gimli_core.step_through.interventions import CHANGEABLE, Intervention, merged
from gimli_core.transforms.tasks import Tasks
from gimli_core.trees import tensors

__all__ = ["Moment", "Walk", "step_through"]


@dataclass(frozen=True, eq=False, repr=False)
class Moment:
    """One line of Algorithm 1 as it ran.

    `values` are keyed by the paper's symbols, with the index that the line gives them: at line 6 of step j,
    "theta" is theta_{j+1}; at line 14, "B" is B_j, and "direct" and "curvature" are its two terms. `given` is
    what the line used.
    """

    line: int
    j: int
    values: dict[str, Any]
    given: Mapping[str, Any]
    replay: bool  # the step had been run before: the memory schedule runs it again
    seconds: float  # what the engine took to come here from the line before
    interventions: tuple[Intervention, ...]  # all that were made before this moment; it may follow from them
    _change: Callable[[Moment, str, Any], None]
    _optimizer: Optimizer

    @property
    def bytes(self) -> int:
        """The size of what was computed."""
        return sum(t.numel() * t.element_size() for t in tensors(self.values))

    @property
    def O(self) -> Tensors:  # noqa: E743 - the paper's letter
        """O_j = dtheta'/dG at line 11: its diagonal, which is all of it for an elementwise rule. Cost: one pullback."""
        if self.line != 11:
            raise unexpected("O", "a moment at line 11", f"one at line {self.line}", "O_j belongs to line 11.")
        given, ones = self.given, {k: torch.ones_like(v) for k, v in self.given["B"].items()}
        none = self._optimizer.zero_adjoint(given["s"])
        return self._optimizer.pullback(given["theta"], given["s"], given["G"], given["phi_opt"], ones, none, ()).V

    def change(self, name: str, value: Any) -> None:
        """Put `value` in place of the one computed, and let the engine go on from there.

        The change counts as a constant: the sweep differentiates the run that follows, with the Jacobians at
        the changed values. A replay of the same line is given the same value again.

        Args:
            name: "G" at line 5; "theta", "s" at 6; "B", "S" at 9 and 14; "V" at 11; "A_opt" at 12; "A_loss" at 13.
            value: in the form of `values[name]`; a dict may name only the entries that change.

        Raises:
            ArgumentError: a name that this line does not compute, another form or shape.
        """
        self._change(self, name, value)

    def __repr__(self) -> str:
        again = ", replay" if self.replay else ""
        after = f", after {len(self.interventions)} interventions" if self.interventions else ""
        return f"Moment(line={self.line}, j={self.j}, {', '.join(self.values)}{again}{after})"


class Walk(Iterator[Moment]):
    """A run of Algorithm 1 that advances by one line for each `next`. `result` stands once it is through."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.schedule = schedule_of_call(call)
        self.run = make_run(call, Wants(lines=True, changes=True, one_number="step_through"))
        self.interventions: tuple[Intervention, ...] = ()
        self._changed: dict[Intervention, Any] = {}
        self._latest: Moment | None = None
        self._result: MetaGradient | None = None
        self._events = self._run()

    @property
    def held(self) -> tuple[Collection[int], Collection[int]]:
        """What memory holds now: the steps whose point is stored, and those whose graph is kept."""
        held: tuple[Collection[int], Collection[int]] = self.run.in_memory  # type: ignore[attr-defined]
        return held

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
        for made, value in self._changed.items() if event.replay else ():
            if (made.line, made.j) == (event.line, event.j):
                event.values[made.name] = value
        self._latest = Moment(
            event.line,
            event.j,
            event.values,
            event.given,
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
    phi_loss: Mapping[str, Tensor] | None = None,
    state_0: State | None = None,
    val_weights: Sequence[float] | Tensor | None = None,
    memory: Schedule | None = None,
    approximation: Approximation | None = None,
    second_order: str = "auto",
    tasks: int | Tasks | None = None,
    resume: str | Path | None = None,
    check: bool = True,
    micro_batches: int | None = None,
) -> Walk:
    """Algorithm 1 line by line, as the engine runs it: an iterator with one `Moment` a line.

    Lines 5 and 6 come for each step forwards, 8 and 9 once (9 again for losses along the way), 11 to 14 for
    each step backwards, 16 at the end. A schedule's replayed steps come again, marked `replay`.

    Args: as in `meta_gradient`.

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
        )
    )
