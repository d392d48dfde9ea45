"""The compiled steps of one problem, as an execution calls them.

Cost: 12F a step whatever the schedule, since a sweep computes G_j again from its point; no graph is kept.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled import pure_steps as functions
from gimli_core.compiled.compiler.compiled_function import Kernel
from gimli_core.compiled.pure_steps import Fixed
from gimli_core.derivatives.finite import check_finite
from gimli_core.derivatives.first_order import Gradient
from gimli_core.notation import State, Tensors
from gimli_core.record import Event, Point
from gimli_core.transforms.one_vector import Fused
from gimli_core.transforms.tasks import LossOverTasks

__all__ = ["CompiledSteps", "bound", "fixed_of", "options_of", "start"]


class CompiledSteps:
    """Lines 5 and 6, 8 and 9, 11-14 of one problem, compiled for the shapes of `inputs`.

    Raises:
        Uncompiled: with the reason.
    """

    def __init__(self, inputs: Inputs) -> None:
        fixed = fixed_of(inputs)
        self._packed: tuple[Any, Any] = (None, None)  # the last step's hyperparameters, as they are and packed
        point, batch, hyper = start(inputs), inputs.batch(0), inputs.optimizer.pack_hyper(inputs.hyper.at(0))
        theta = inputs.optimizer.pack(point.theta)
        rest = (inputs.phi_loss, inputs.frozen)
        environment = inputs.environment
        found = environment.capture()
        arguments: tuple[Any, ...] = (theta, point.state, *rest, hyper, batch)
        options = options_of(inputs)
        self._advance = Kernel("the step", bound(functions.advance, fixed), environment, arguments, batch, **options)
        # Whether the losses draw random numbers or change buffers: if not, no snapshot is needed to run a step again.
        self._advance(batch, *arguments)
        self.draws = environment.moved(found)
        environment.restore(found)
        validation = (theta, *rest, inputs.val_batch)
        self._validate = Kernel(
            "val_loss", bound(functions.validate, fixed), environment, validation, inputs.val_batch, **options
        )
        B, S = self._validate(inputs.val_batch, *validation).theta, inputs.optimizer.zero_adjoint(point.state)
        environment.restore(found)
        self._sweep = Kernel(
            "the sweep", bound(functions.sweep, fixed), environment, (*arguments, B, S), batch, **options
        )
        self.seconds = self._advance.seconds + self._validate.seconds + self._sweep.seconds

    def look(self, inputs: Inputs) -> None:
        """Can all of a run be done with what was compiled, or compiled again? Raises Uncompiled."""
        point, batch = start(inputs), inputs.batch(0)
        arguments = *self._given(inputs, point), batch
        theta, rest = arguments[0], (inputs.phi_loss, inputs.frozen, inputs.val_batch)
        self._advance.look(batch, *arguments)
        self._validate.look(inputs.val_batch, theta, *rest)
        self._sweep.look(batch, *arguments, theta, inputs.optimizer.zero_adjoint(point.state))

    def begin(self) -> None:
        """A run begins."""
        self._packed = (None, None)
        for kernel in (self._advance, self._sweep, self._validate):
            kernel.begin()

    def advance(self, inputs: Inputs, point: Point, *, replay: bool) -> Generator[Event, None, tuple[Gradient, Point]]:
        """Lines 5 and 6, as `forward_unroll.step`; what a consumer puts into an event's values is not seen."""
        j, batch, optimizer = point.j, inputs.batch(point.j), inputs.optimizer
        done = self._advance(batch, *self._given(inputs, point), batch)
        G, theta = optimizer.unpack(done.G), optimizer.unpack(done.theta)
        G_j = Gradient(done.loss, G, {}, None)
        if done.sound.device.type == "cpu" and not math.isfinite(done.sound.item()):
            check_finite(j, point.theta, G_j, batch)
        yield Event(5, j, {"loss": done.loss, "G": G}, replay)
        yield Event(6, j, {"theta": theta, "s": done.s}, replay)
        return G_j, Point(j + 1, theta, done.s, None)

    def sweep(
        self, inputs: Inputs, point: Point, B: Tensors, S: State, *, replay: bool
    ) -> Generator[Event, None, functions.Swept]:
        """Lines 11-14, as `backward_sweep.step`, from the point alone."""
        j, batch, optimizer = point.j, inputs.batch(point.j), inputs.optimizer
        done: functions.Swept = self._sweep(batch, *self._given(inputs, point), batch, optimizer.pack(B), S)
        swept = done._replace(B=optimizer.unpack(done.B))
        yield Event(14, j, {"B": swept.B, "S": swept.S}, replay)
        return swept

    def validation_gradient(self, inputs: Inputs, point: Point) -> Gradient:
        """Lines 8 and 9."""
        theta, batch = inputs.optimizer.pack(point.theta), inputs.val_batch
        done = self._validate(batch, theta, inputs.phi_loss, inputs.frozen, batch)
        return Gradient(done.loss, inputs.optimizer.unpack(done.theta), done.phi_loss, None)

    def _given(self, inputs: Inputs, point: Point) -> tuple[Any, ...]:
        hyper = inputs.hyper.at(point.j)
        if self._packed[0] is not hyper:
            self._packed = hyper, inputs.optimizer.pack_hyper(hyper)
        theta = inputs.optimizer.pack(point.theta)
        return theta, point.state, inputs.phi_loss, inputs.frozen, self._packed[1]


def fixed_of(inputs: Inputs) -> Fixed:
    """What the functions are compiled for."""
    train_loss, val_loss = (
        loss.vectorised if isinstance(loss, LossOverTasks) else loss
        for loss in (inputs.problem.train_loss, inputs.problem.val_loss)
    )
    return Fixed(train_loss, val_loss, inputs.optimizer, inputs.hyper.wanted, inputs.recurrence == "augmented")


def options_of(inputs: Inputs) -> dict[str, Any]:
    """Options of the compiler, as measured on a processor.

    Small steps are called from C++, which takes a fifth off their time, and small loops are not shared out among
    threads. Convolutions keep the layout that they came in: the compiler's own takes 15 % longer on Omniglot, since
    what goes with them must be laid out anew, forwards and twice backwards.
    """
    if next(iter(inputs.hyper.theta.values())).device.type != "cpu":
        return {}
    small = {"cpp_wrapper": True, "cpp.min_chunk_size": 4096} if isinstance(inputs.optimizer, Fused) else {}
    return {"layout_optimization": False, **small}


def start(inputs: Inputs) -> Point:
    """(theta_0, s_0) in memory of its own: what is expanded over tasks would have strides that no later step has."""
    optimizer = inputs.optimizer
    theta, state = tree_map(_own, (optimizer.pack(inputs.theta_0), inputs.state_0))
    return Point(0, optimizer.unpack(theta), state, None)


def _own(x: Tensor) -> Tensor:
    return x.contiguous() if 0 in x.stride() else x


def bound(function: Any, fixed: Fixed, *more: Any) -> Any:
    """`function` with what is fixed; a plain function, so that it has a code object of its own."""

    def call(*arguments: Any) -> Any:
        return function(fixed, *more, *arguments)

    return call
