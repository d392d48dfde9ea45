"""A point where the inner loop rests, and all that is asked of the losses there."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core import backward_sweep, forward_unroll
from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.first_order import Gradient
from gimli_core.implicit.systems import System
from gimli_core.notation import State, Tensors
from gimli_core.optimizers.interface import with_path
from gimli_core.optimizers.seen import seeing
from gimli_core.record import Event, Point

__all__ = ["FixedPoint", "at_point"]


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """theta_star, the gradients of both losses there, and products with the second derivatives of the inner one.

    Vectors are `[T, n]`, a row for each task: see systems.py.

    Cost: 6F, and the graph of one gradient for as long as this lives; 6F a product.
    """

    inputs: Inputs
    point: Point
    G: Gradient  # of the inner loss, with its graph
    L: Gradient  # of L_val, with its explicit part

    @property
    def rows(self) -> int:
        """T, or 1."""
        return self.inputs.form.tasks or 1

    def vector(self, tensors: Tensors) -> Tensor:
        """Tensors like theta as one vector a task, in float32 at least."""
        joined = torch.cat([tensors[k].reshape(self.rows, -1) for k in self.point.theta], 1)
        return joined.to(torch.promote_types(joined.dtype, torch.float32))

    def tensors(self, vector: Tensor) -> Tensors:
        """The vector by name, in theta's dtype."""
        like = self.point.theta
        parts = vector.split([v.numel() // self.rows for v in like.values()], 1)
        return {k: part.reshape(v.shape).to(v.dtype) for (k, v), part in zip(like.items(), parts, strict=True)}

    def hessian(self, v: Tensor) -> Tensor:
        """H v."""
        products = backward_sweep.second_order_products(
            self.inputs, self.point, self.G, self.tensors(v), mixed=False, keep_graph=True
        )
        return self.vector(products.curvature)

    def mixed(self, v: Tensor) -> Tensors:
        """v grad_phi grad_theta ell, summed over the tasks where they share phi."""
        products = backward_sweep.second_order_products(
            self.inputs, self.point, self.G, self.tensors(v), curvature=False, keep_graph=True
        )
        return products.mixed

    def sweep(self, B: Tensor, S: State | None) -> tuple[Tensor, Tensor, State]:
        """Lines 11-14, as the engine takes them: (V, B, S) from the B and S of the step after."""
        if S is None:
            S = self.inputs.form.optimizer.zero_adjoint(self.point.state)
        events = backward_sweep.step(self.inputs, self.point, self.G, self.tensors(B), S, replay=False, keep_graph=True)
        seen: dict[int, Event] = {}
        swept = _returned(events, lambda event: seen.update({event.line: event}))
        return self.vector(seen[11].values["V"]), self.vector(swept.B), swept.S

    def system(self, b: Tensor, damping: float, **more: Any) -> System:
        """(H + damping I) v = b."""

        def apply(v: Tensor) -> Tensor:
            return self.hessian(v) + damping * v if damping else self.hessian(v)

        return System(apply, b, sweep=self.sweep, **more)

    def step(self, G: Tensors) -> Tensors:
        """Where the rule goes from here with the gradient G."""
        form = self.inputs.form
        hyper = seeing(form.optimizer, self.inputs.values.hyper.at(0), self.G.loss)
        used = with_path(form.optimizer, G, self.G.unused)
        moved: Tensors = form.optimizer.step_used(self.point.theta, self.point.state, used, hyper)[0]
        return moved

    def moved(self, step: Tensor) -> FixedPoint:
        """The same at theta_star + step."""
        here = self.point.theta
        theta = {k: here[k] + v for k, v in self.tensors(step).items()}
        return at_point(self.inputs, self.point._replace(theta=theta))

    def onward(self, steps: int) -> FixedPoint:
        """The same, so many steps of the rule further on. Cost 3F a step."""
        point = self.point
        for _ in range(steps):
            _restore(self.inputs, point)
            events = forward_unroll.step(self.inputs, point, keep_graph=False, replay=False)
            _, (_, theta, s, _) = _returned(events)
            point = point._replace(theta=theta, state=s)
        return at_point(self.inputs, point)


def at_point(inputs: Inputs, point: Point) -> FixedPoint:
    """The gradients of both losses there; L_val is one number. Cost: 6F."""
    _restore(inputs, point)
    G = forward_unroll.inner_gradient(inputs, point, keep_graph=True)
    _restore(inputs, point)
    _, (L,) = backward_sweep.validation_gradients(inputs, point)
    return FixedPoint(inputs, point, G, L)


def _restore(inputs: Inputs, point: Point) -> None:
    """Every evaluation meets the same random numbers and buffers."""
    assert point.snapshot is not None
    inputs.environment.restore(point.snapshot)


def _returned(events: Generator[Event, None, Any], look: Callable[[Event], None] = lambda event: None) -> Any:
    """What a line of events returns at its end; each event is shown to `look`."""
    while True:
        try:
            look(next(events))
        except StopIteration as end:
            return end.value
