"""The compiled steps of one problem, as an execution calls them.

Cost: 12F a step whatever the schedule, since a sweep computes G_j again from its point; no graph is kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled import pure_steps
from gimli_core.compiled.compiler.compiled_function import Kernel
from gimli_core.compiled.compiler.cut import Uncut
from gimli_core.compiled.pure_steps import Fixed
from gimli_core.compiled.shared_sweep import SharedSweep
from gimli_core.compiled.validation import CompiledValidation
from gimli_core.derivatives.finite import check_finite
from gimli_core.derivatives.first_order import Gradient
from gimli_core.environment import Environment
from gimli_core.record import Adjoint, Again, Event, Point, Swept
from gimli_core.transforms.one_vector import OneVector

__all__ = ["CompiledSteps", "bound", "fixed_of", "options_of", "start"]


class CompiledSteps:
    """Lines 5 and 6, 8 and 9, 11-14 of one problem, compiled for the shapes of `inputs`.

    Raises:
        Uncompiled: with the reason.
    """

    eager = False

    def __init__(self, inputs: Inputs) -> None:
        fixed = fixed_of(inputs)
        point, batch, hyper = start(inputs), inputs.values.batch(0), inputs.values.hyper.at(0)
        theta = point.theta
        rest = (inputs.values.phi_at(0), inputs.values.frozen)
        environment = inputs.environment
        snapshot = environment.capture()
        arguments: tuple[Any, ...] = (theta, point.state, *rest, hyper, batch)
        options = options_of(inputs)
        self._advance = Kernel("the step", bound(pure_steps.advance, fixed), environment, arguments, batch, **options)
        self.draws, self._graphs = False, 0
        self._note_draws(environment, batch, arguments)
        self._validate = CompiledValidation(fixed, inputs, theta, **options)
        B = self._validate(inputs, inputs.values.last_val_batch, theta)[1][0].theta
        S = inputs.form.optimizer.zero_adjoint(point.state)
        environment.restore(snapshot)
        swept = (*arguments, pure_steps.Along(B, S))
        self._shared: SharedSweep | None = None
        if self._validate.outer_losses is not None:
            with contextlib.suppress(Uncut):  # where it is not cut, each outer loss has a sweep from the point
                self._shared = SharedSweep(fixed, inputs, swept, **options)
        if self._shared is None:
            self._sweep = Kernel("the sweep", bound(pure_steps.sweep, fixed), environment, swept, batch, **options)
        self.seconds = self._advance.seconds + self._validate.seconds + (self._shared or self._sweep).seconds

    def look(self, inputs: Inputs) -> None:
        """Can all of a run be done with what was compiled, or compiled again? Raises Uncompiled."""
        point, batch = start(inputs), inputs.values.batch(0)
        arguments = *_arguments(inputs, point), batch
        S = inputs.form.optimizer.zero_adjoint(point.state)
        self._advance.look(batch, *arguments)
        self._note_draws(inputs.environment, batch, arguments)
        self._validate.look(inputs, point.theta)
        if self._shared is None:
            self._sweep.look(batch, *arguments, pure_steps.Along(point.theta, S))
        else:
            self._shared.look(arguments, point.theta, S)

    def _note_draws(self, environment: Environment, batch: Any, arguments: tuple[Any, ...]) -> None:
        """Whether a step draws random numbers or changes buffers: if not, no snapshot is needed to run it again. Found
        out once for a graph: a module may be in another mode in a later call.
        """
        if self._advance.graphs != self._graphs:
            self._graphs, snapshot = self._advance.graphs, environment.capture()
            self._advance.begin()
            self._advance(batch, *arguments)
            self.draws |= environment.moved(snapshot)
            environment.restore(snapshot)

    def begin(self, inputs: Inputs) -> Point:
        """A run begins: (theta_0, s_0)."""
        for compiled in (self._advance, self._validate, *(() if self._shared else (self._sweep,))):
            compiled.begin()
        return start(inputs)

    def advance(
        self, inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, kept_gradient: Gradient | None
    ) -> Generator[Event, None, tuple[Gradient, Point]]:
        """Lines 5 and 6; from theta_j even where G_j is known, for the same bits as in the first run.

        What a consumer puts into an event's values is not seen.
        """
        j, batch = point.j, inputs.values.batch(point.j)
        done = self._advance(batch, *_arguments(inputs, point), batch)
        G_j = Gradient(done.loss, done.G, {}, None)
        if done.sound.device.type == "cpu" and not math.isfinite(done.sound.item()):
            check_finite(j, point.theta, G_j, batch, inputs.form.names)
        yield Event(5, j, {"loss": done.loss, "G": done.G}, replay)
        yield Event(6, j, {"theta": done.theta, "s": done.s}, replay)
        return G_j, Point(j + 1, done.theta, done.s, None)

    def sweep(
        self, inputs: Inputs, point: Point, G_j: Gradient | None, adjoints: Sequence[Adjoint], *, replay: bool
    ) -> Generator[Event, None, Again]:
        """Lines 11-14 for each outer loss, from the point alone."""
        j, loss, arguments = point.j, None, (*_arguments(inputs, point), inputs.values.batch(point.j))
        sweeps = self._each(inputs, arguments, adjoints) if self._shared is None else self._shared(arguments, adjoints)
        for row, (A, done) in enumerate(zip(adjoints, sweeps, strict=True)):
            yield Event(14, j, {"B": done.B, "S": done.S}, replay, row=row, rows=len(adjoints))
            A.add_step(j, Swept(done.B, done.S, done.A_opt, done.A_loss, done.loss))
            loss = done.loss
        return Again(loss)

    def _each(
        self, inputs: Inputs, arguments: tuple[Any, ...], adjoints: Sequence[Adjoint]
    ) -> Iterator[pure_steps.Swept]:
        """A sweep from the point for each outer loss, all in the same environment."""
        met = inputs.environment.capture() if self.draws and len(adjoints) > 1 else None
        for row, A in enumerate(adjoints):
            if met is not None and row:
                inputs.environment.restore(met)
            yield self._sweep(arguments[-1], *arguments, pure_steps.Along(A.B, A.S))

    def validation(
        self, inputs: Inputs, point: Point, along: Tensor | None = None, *, rows: bool = True
    ) -> tuple[Gradient, list[Gradient]]:
        """Lines 8 and 9."""
        return self._validate(inputs, inputs.values.val_batch(point.j), point.theta, along, rows=rows)

    def validation_value(self, inputs: Inputs, point: Point) -> Gradient:
        """L_val, by the kernel of the sweep, so that every schedule has the same bits."""
        return self._validate(inputs, inputs.values.val_batch(point.j), point.theta, rows=False)[0]


def _arguments(inputs: Inputs, point: Point) -> tuple[Any, ...]:
    values = inputs.values
    return point.theta, point.state, values.phi_at(point.j), values.frozen, values.hyper.at(point.j)


def fixed_of(inputs: Inputs) -> Fixed:
    """What the functions are compiled for."""
    form = inputs.form
    # A loss over tasks that cannot be vectorised would run one task after the other: that is not compiled.
    train_loss, val_loss = (
        getattr(loss, "vectorised", loss) for loss in (form.problem.train_loss, form.problem.val_loss)
    )
    return Fixed(train_loss, val_loss, form.optimizer, form.wanted, form.augmented)


def options_of(inputs: Inputs) -> dict[str, Any]:
    """Options of the compiler, as measured on a processor.

    Steps are called from C++, which takes a fifth off the time of small ones and a twentieth off that of large ones.
    The calls are compiled apart from the kernels, which alone are worth optimizing, and these in one file: that halves
    the C++ compiler's time. Small loops are not shared out among threads. Convolutions keep the layout that they came
    in: the compiler's own takes 15 % longer on Omniglot, since what goes with them must be laid out anew, forwards and
    twice backwards.
    """
    if inputs.device.type != "cpu":
        return {}
    joined = any(isinstance(transform, OneVector) for transform in inputs.form.transforms)
    small = {"cpp.min_chunk_size": 4096} if joined else {}
    return {"layout_optimization": False, "cpp_wrapper": True, "cpp_wrapper_build_separate": True, **small}


def start(inputs: Inputs) -> Point:
    """(theta_0, s_0) in memory of its own: what is expanded over tasks would have strides that no later step has."""
    theta, state = tree_map(unexpanded, (inputs.values.theta_0, inputs.values.state_0))
    return Point(0, theta, state, None)


def unexpanded(x: Tensor) -> Tensor:
    """A tensor of any shape in memory of its own, if it was expanded."""
    return x.contiguous() if 0 in x.stride() else x


def bound(function: Any, fixed: Fixed, *more: Any) -> Any:
    """`function` with what is fixed; a plain function, so that it has a code object of its own."""

    def call(*arguments: Any) -> Any:
        return function(fixed, *more, *arguments)

    return call
