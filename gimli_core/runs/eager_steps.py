"""The steps that a scheduled run is made of, as recorded graphs: lines 5-6, 8-9 and 11-14 in eager mode."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

import torch

from gimli_core import backward_sweep, forward_unroll
from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.first_order import Gradient, evaluate
from gimli_core.notation import State, Tensors
from gimli_core.record import Event, Point, Swept

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
        self, inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, known: Gradient | None
    ) -> Generator[Event, None, tuple[Gradient, Point]]:
        """Lines 5 and 6."""

    def sweep(
        self, inputs: Inputs, point: Point, G_j: Gradient | None, B: Tensors, S: State, *, replay: bool
    ) -> Generator[Event, None, Swept]:
        """Lines 11-14, from G_j (and its graph, if that was kept) or from the point alone."""

    def validation_gradient(self, inputs: Inputs, point: Point) -> Gradient:
        """Lines 8 and 9."""

    def validation_value(self, inputs: Inputs, point: Point) -> Gradient:
        """L_val, with the bits that it has beside its gradient, which need not be there."""


class EagerSteps:
    """`Steps` by autograd's recorded graphs."""

    eager = True
    draws = False

    def begin(self, inputs: Inputs) -> Point:
        return Point(0, inputs.values.theta_0, inputs.values.state_0, None)

    def advance(
        self, inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, known: Gradient | None
    ) -> Generator[Event, None, tuple[Gradient, Point]]:
        return forward_unroll.step(inputs, point, keep_graph=keep_graph, replay=replay, known=known)

    def sweep(
        self, inputs: Inputs, point: Point, G_j: Gradient | None, B: Tensors, S: State, *, replay: bool
    ) -> Generator[Event, None, Swept]:
        evaluated = None
        if replay:
            if G_j is None:
                G_j = forward_unroll.inner_gradient(inputs, point, keep_graph=inputs.form.keeps_graph)
                evaluated = G_j.loss
            computed = Event(5, point.j, {"loss": G_j.loss, "G": G_j.theta}, True, {"theta": point.theta})
            yield computed
            G_j = G_j._replace(theta=computed.values["G"])
        assert G_j is not None
        swept = yield from backward_sweep.step(inputs, point, G_j, B, S, replay=replay)
        return swept._replace(same=evaluated)

    def validation_gradient(self, inputs: Inputs, point: Point) -> Gradient:
        return backward_sweep.validation_gradient(inputs, point)

    def validation_value(self, inputs: Inputs, point: Point) -> Gradient:
        values = inputs.values
        with torch.enable_grad():  # without it some modules take another path, and the last bits change
            theta = {**values.frozen, **{k: v.detach().requires_grad_() for k, v in point.theta.items()}}
            batch = values.val_batch(point.j)
            loss, aux = evaluate(inputs.form.problem.val_loss, "val_loss", theta, values.phi_loss, batch)
        return Gradient(loss.detach(), {}, {}, None, aux=aux)
