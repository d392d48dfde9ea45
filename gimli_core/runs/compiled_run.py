"""One run of Algorithm 1 by compiled functions that keep every step; where it breaks, another takes its place."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from gimli_core.arguments.form import Form
from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.retained_run import CompiledRetained
from gimli_core.compiled.whole_run import CompiledWhole, RunTensors
from gimli_core.environment import Environment
from gimli_core.memory.allocator import reusing
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.notation import Tensors
from gimli_core.record import Event, Outcome
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.outcome import finished, outcome_of, stacked, trajectory
from gimli_core.runs.run import Events, Run

__all__ = ["CompiledRun", "Compute", "retained", "whole_run"]

Compute = Generator[Event, None, list[Outcome] | None]


class CompiledRun:
    """A run of compiled functions, forwards and backwards at once.

    Args:
        form, hyper, frozen: what a result needs besides the outcome.
        compute: the events of the run, and its outcome for each outer loss; None where something is not finite, or
            what was compiled no longer fits.
        otherwise: makes the run that takes its place then, and names what broke.
        vector: whether val_loss returns a vector.
    """

    def __init__(
        self,
        form: Form,
        hyper: Hyperparameters,
        frozen: Tensors,
        compute: Callable[[], Compute],
        otherwise: Callable[[], Run],
        *,
        vector: bool = False,
    ) -> None:
        self.form, self.steps = form, form.steps
        self._hyper, self._frozen, self._vector = hyper, frozen, vector
        self._compute, self._otherwise = compute, otherwise
        self._instead: Run | None = None
        self._outcomes: list[Outcome] | None = None

    def forward(self) -> Events:
        """All of Algorithm 1."""
        with reusing():
            self._outcomes = yield from self._compute()
        if self._outcomes is None:
            self._instead = self._otherwise()
            yield from self._instead.forward()

    def backward(self, along: Tensor | None = None) -> Events:
        """Nothing: `forward` has been back already."""
        if self._instead is not None:
            yield from self._instead.backward(along)

    @property
    def val_loss(self) -> Tensor:
        return self._instead.val_loss if self._instead is not None else self._computed[0].val_loss

    def trajectory(self) -> Trajectory:
        if self._instead is not None:
            return self._instead.trajectory()
        return trajectory(self.form, self._frozen, self._computed[0])

    def result(self) -> MetaGradient:
        """The result, once `forward` is through."""
        if self._instead is not None:
            return self._instead.result()
        results = [finished(self.form, self._frozen, self._hyper, outcome) for outcome in self._computed]
        return stacked(results) if self._vector else results[0]

    @property
    def _computed(self) -> list[Outcome]:
        assert self._outcomes is not None
        return self._outcomes


def retained(compiled: CompiledRetained, inputs: Inputs) -> Compute:
    """A compiled step forwards and its sweep, called in turn; every step is told."""
    environment, hyper = inputs.environment, inputs.values.hyper
    snapshot = environment.capture()
    done, buffers = None, {}
    try:
        done = yield from compiled.run(inputs)
        buffers = environment.copies()
    finally:
        _put_back(environment, snapshot, completely=done is None)
    if done is None:
        return None
    losses, outcomes = (done.train_losses, done.val_losses), []
    for row in done.rows:
        A_opt = _summed(inputs.form, hyper, row.A_opt)
        outcomes.append(outcome_of(inputs, row.ends, *losses, buffers, A_opt, row.A_loss))
    return outcomes


def whole_run(
    compiled: CompiledWhole, form: Form, hyper: Hyperparameters, tensors: RunTensors, environment: Environment | None
) -> Compute:
    """The whole run as one function, told at its end. Without an environment it surely changes nothing."""
    buffers: Tensors = {}
    if environment is None:
        done = compiled.as_it_is(tensors)
    else:
        snapshot = environment.capture()
        done = None
        try:
            done = compiled(tensors)
            buffers = environment.copies()
        finally:
            _put_back(environment, snapshot, completely=done is None)
    if done is None:
        return None
    A_opt = _summed(form, hyper, done.A_opt)
    hyper.accumulate(A_opt, 0, done.A_start)
    yield Event(14, 0, {"B": done.ends.B, "S": done.ends.S})
    return [Outcome(*done[:4], done.ends, buffers, A_opt, done.A_loss)]


def _summed(form: Form, hyper: Hyperparameters, increments: list[dict[str, Tensors]]) -> list[Tensor]:
    """A_opt from the increments of the steps, the last one's first; or from their sum alone."""
    A_opt = hyper.zeros()
    for j, A_j in zip(reversed(range(form.steps)), increments, strict=False):
        hyper.accumulate(A_opt, j, A_j)
    return A_opt


def _put_back(environment: Environment, snapshot: Any, *, completely: bool) -> None:
    """Buffers as they were; random numbers too for a run that takes another's place: it meets what that one met."""
    if completely:
        environment.restore(snapshot)
    else:
        environment.restore_buffers(snapshot)
