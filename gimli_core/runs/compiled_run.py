"""One run of Algorithm 1 that is compiled whole; where it breaks, another takes its place and says why."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.whole_run import CompiledWhole, Given, Outcome
from gimli_core.environment import Environment
from gimli_core.memory.allocator import reusing
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.notation import Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.record import Event
from gimli_core.results import MetaGradient, Trajectory

__all__ = ["Frame", "WholeRun"]

Events = Generator[Event, None, None]


@dataclass(frozen=True, eq=False)
class Frame:
    """What a result needs besides the tensors of its run; the same for all calls of a form."""

    optimizer: Optimizer
    hyper: Hyperparameters
    steps: int
    scale: float
    over_tasks: bool
    warm: bool
    recurrence: str

    @staticmethod
    def of(inputs: Inputs) -> Frame:
        return Frame(
            inputs.optimizer, inputs.hyper, inputs.steps, inputs.scale, inputs.tasks is not None, inputs.warm,
            inputs.recurrence,
        )  # fmt: skip


class WholeRun:
    """A run of a compiled function.

    Args:
        compiled: the function.
        frame: the rest of the result.
        given: the tensors.
        environment: what the run may change besides, to be put back; None where it changes nothing.
        otherwise: makes the run that takes its place where something is not finite, or (without an
            environment) no longer as it was when the function was compiled.
    """

    def __init__(
        self, compiled: CompiledWhole, frame: Frame, given: Given, environment: Environment | None,
        otherwise: Callable[[], Any],
    ) -> None:  # fmt: skip
        self.steps, self.scale, self.trained = frame.steps, frame.scale, given.theta_0.keys()
        self._compiled, self._frame, self._given = compiled, frame, given
        self._environment, self._otherwise = environment, otherwise
        self._instead: Any = None
        self._outcome: Outcome | None = None
        self._buffers: Tensors = {}

    def forward(self) -> Events:
        """All of Algorithm 1, told at its end."""
        with reusing():
            self._outcome = outcome = self._computed()
        if outcome is None:
            self._instead = self._otherwise()
            yield from self._instead.forward()
        else:
            yield Event(14, 0, {"B": outcome.B_0, "S": outcome.S_0})

    def _computed(self) -> Outcome | None:
        environment = self._environment
        if environment is None:
            return self._compiled.as_it_is(self._given)
        found = environment.capture()
        outcome = None
        try:
            outcome = self._compiled(self._given)
            self._buffers = environment.copies()
        finally:
            if outcome is None:  # the run that names what broke meets what this one met
                environment.restore(found)
            else:
                environment.restore_buffers(found)
        return outcome

    def backward(self) -> Events:
        """Nothing: `forward` has been back already."""
        if self._instead is not None:
            yield from self._instead.backward()

    @property
    def val_loss(self) -> Tensor:
        return self.trajectory().val_loss if self._outcome is None else self._outcome.val_loss

    def trajectory(self) -> Trajectory:
        return self.result() if self._instead is None else self._instead.trajectory()

    def result(self) -> MetaGradient:
        """The result, once `forward` is through."""
        if self._instead is not None:
            instead: MetaGradient = self._instead.result()
            return instead
        assert self._outcome is not None
        out, frame, frozen = self._outcome, self._frame, self._given.frozen
        return MetaGradient(
            val_loss=out.val_loss,
            theta_J={**frozen, **out.theta_J} if frozen else out.theta_J,
            state_J=out.state_J,
            buffers_J=self._buffers,
            train_losses=out.train_losses,
            val_losses=out.val_losses,
            task_val_losses=out.task_val_losses if frame.over_tasks else None,
            A_opt=self._A_opt(out) if frame.hyper.wanted else {},
            A_loss=out.A_loss,
            B_0=out.B_0,
            S_0=out.S_0,
            recurrence=frame.recurrence,
        )

    def _A_opt(self, out: Outcome) -> dict[str, Any]:
        """The increments in the form of phi_opt."""
        hyper = self._frame.hyper
        total = hyper.zeros()
        for j, A_j in zip(reversed(range(self.steps)), out.A_opt, strict=False):
            hyper.accumulate(total, j, A_j)
        if not self._frame.warm:  # s_0 = s_0(phi_opt)
            started = self._frame.optimizer.initial_state_pullback(out.S_0, hyper.at(0), hyper.wanted)
            hyper.accumulate(total, 0, started)
        return hyper.join(total)
