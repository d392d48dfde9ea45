"""The steps that a scheduled run is made of, as recorded graphs: lines 5-6, 8-9 and 11-14 in eager mode."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from torch import Tensor

from gimli_core import backward_sweep, forward_unroll
from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_value
from gimli_core.derivatives.first_order import Gradient
from gimli_core.lines_over_ranks import validation_of_ranks
from gimli_core.notation import Tensors
from gimli_core.record import Adjoint, Again, Event, Point, Swept

__all__ = ["EagerSteps", "Steps"]


class Steps(Protocol):
    """What executes single lines for a `ScheduledRun`; each method is told the run's inputs."""

    @property
    def eager(self) -> bool:
        """Whether it keeps graphs and goes on from a kept G_j; then a replay has the bits of the first run."""

    @property
    def draws(self) -> bool:
        """Whether a kept step must also keep the random numbers and buffers that it met, to be run again."""

    def begin(self, inputs: Inputs) -> Point:
        """A run begins: (theta_0, s_0)."""

    def advance(
        self, inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, kept_gradient: Gradient | None
    ) -> Generator[Event, None, tuple[Gradient, Point]]:
        """Lines 5 and 6."""

    def sweep(
        self, inputs: Inputs, point: Point, G_j: Gradient | None, adjoints: Sequence[Adjoint], *, replay: bool
    ) -> Generator[Event, None, Again]:
        """Lines 11-14 for each outer loss, from G_j (and its graph, if that was kept) or from the point alone."""

    def validation(
        self, inputs: Inputs, point: Point, along: Tensor | None = None, *, rows: bool = True
    ) -> tuple[Gradient, list[Gradient]]:
        """Lines 8 and 9: L_val and the gradient of each outer loss, or of `along · L_val`; of k numbers without
        `rows` none.
        """

    def validation_value(self, inputs: Inputs, point: Point) -> Gradient:
        """L_val, with the bits that it has beside its gradient, which need not be there."""


def numbered(events: Generator[Event, None, Swept], row: int, rows: int) -> Generator[Event, None, Swept]:
    """The events of one outer loss of several, each saying of which. What is put into their values is kept."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            swept: Swept = end.value
            return swept
        yield event._replace(row=row, rows=rows)


class EagerSteps:
    """`Steps` by autograd's recorded graphs."""

    eager = True
    draws = False

    def begin(self, inputs: Inputs) -> Point:
        return Point(0, inputs.values.theta_0, inputs.values.state_0, None)

    def advance(
        self, inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, kept_gradient: Gradient | None
    ) -> Generator[Event, None, tuple[Gradient, Point]]:
        return forward_unroll.step(inputs, point, keep_graph=keep_graph, replay=replay, kept_gradient=kept_gradient)

    def sweep(
        self, inputs: Inputs, point: Point, G_j: Gradient | None, adjoints: Sequence[Adjoint], *, replay: bool
    ) -> Generator[Event, None, Again]:
        evaluated = again = None
        if replay:
            if G_j is None:
                G_j = forward_unroll.inner_gradient(inputs, point, keep_graph=inputs.form.keeps_graph)
                evaluated = G_j.loss
            computed = Event(5, point.j, {"loss": G_j.loss, "G": G_j.theta}, True, {"theta": point.theta})
            yield computed
            G_j = forward_unroll.as_changed(G_j, computed.values["G"])
        assert G_j is not None
        rows = len(adjoints)
        for row, A in enumerate(adjoints):  # one graph of G_j for all
            lines = backward_sweep.step(inputs, point, G_j, A.B, A.S, replay=replay, keep_graph=row < rows - 1)
            swept = yield from (lines if rows == 1 else numbered(lines, row, rows))
            again = swept.loss
            A.add_step(point.j, swept)
            del swept
        return Again(again, evaluated)

    def validation(
        self, inputs: Inputs, point: Point, along: Tensor | None = None, *, rows: bool = True
    ) -> tuple[Gradient, list[Gradient]]:
        return backward_sweep.validation_gradients(inputs, point, along, rows=rows)

    def validation_value(self, inputs: Inputs, point: Point) -> Gradient:
        def of_batch(theta: Tensors) -> tuple[Gradient, list[Gradient], Any]:
            batch = inputs.values.val_batch(point.j)
            return outer_value(inputs, theta, batch), [], batch

        return validation_of_ranks(inputs.form, point.j, point.theta, of_batch)[0]
