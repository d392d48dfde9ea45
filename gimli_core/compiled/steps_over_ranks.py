"""The compiled steps of ranks that share a batch, or theta, s, B and S: between what is compiled, ranks send as ever.

Messages are those of eager steps, one for one, and so are schedules: what line 5 hands on to lines 13-14 is to this run
what a recorded graph is to an eager one (9F a step).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled import pure_steps
from gimli_core.compiled.rank_kernels import RankKernels, of_rank
from gimli_core.compiled.steps import start
from gimli_core.derivatives.finite import at_once, check_finite
from gimli_core.derivatives.first_order import Gradient
from gimli_core.derivatives.second_order import Products
from gimli_core.lines_over_ranks import gradient_of_ranks, products_of_ranks, validation_of_ranks
from gimli_core.notation import Tensors
from gimli_core.optimizers.seen import seeing
from gimli_core.record import Adjoint, Again, Event, Point, Swept
from gimli_core.transforms.shares import unweighed

__all__ = ["CompiledOverRanks"]


class CompiledOverRanks:
    """The steps of one run by what was compiled. Raises Uncompiled where that does not fit any more."""

    eager = True  # graphs are kept, if not recorded ones, and a replay goes on from a kept G_j
    draws = False

    def __init__(self, kernels: RankKernels, inputs: Inputs) -> None:
        self._kernels, self._local = kernels, of_rank(inputs)
        self._joined = kernels.look(inputs)

    def begin(self, inputs: Inputs) -> Point:
        """A run begins: (theta_0, s_0)."""
        self._kernels.validate.begin()
        self._kernels.rule.begin()
        return start(inputs)

    def advance(
        self, inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, kept_gradient: Gradient | None
    ) -> Generator[Event, None, tuple[Gradient, Point]]:
        """Lines 5 and 6. What a consumer puts into an event's values is not seen."""
        j = point.j
        G_j = self._gradient(inputs, point, keep_graph=keep_graph) if kept_gradient is None else kept_gradient
        yield Event(5, j, {"loss": G_j.loss, "G": G_j.theta}, replay)
        hyper = seeing(inputs.form.optimizer, inputs.values.hyper.at(j), G_j.loss)
        theta, s = self._kernels.rule.step(point, hyper, G_j.theta)
        yield Event(6, j, {"theta": theta, "s": s}, replay)
        return G_j, Point(j + 1, theta, s, None)

    def sweep(
        self, inputs: Inputs, point: Point, G_j: Gradient | None, adjoints: Sequence[Adjoint], *, replay: bool
    ) -> Generator[Event, None, Again]:
        """Lines 11-14 for each outer loss."""
        form, j, evaluated = inputs.form, point.j, None
        if G_j is None:
            G_j = self._gradient(inputs, point, keep_graph=True)
            evaluated = G_j.loss
        hyper = seeing(form.optimizer, inputs.values.hyper.at(j), G_j.loss)
        for row, A in enumerate(adjoints):
            pulled, g = self._kernels.rule.pullback(point, hyper, G_j, A)
            curvature, mixed = self._products(inputs, j, G_j, pulled.V, g)
            B_j = {k: torch.add(direct, curvature[k]) for k, direct in pulled.B.items()}
            yield Event(14, j, {"B": B_j, "S": pulled.S}, replay, row=row, rows=len(adjoints))
            A.add_step(j, Swept(B_j, pulled.S, pulled.A, mixed, None))
        return Again(None, evaluated)

    def validation(
        self, inputs: Inputs, point: Point, along: Tensor | None = None, *, rows: bool = True
    ) -> tuple[Gradient, list[Gradient]]:
        """Lines 8 and 9."""
        j, local = point.j, self._local

        def of_part(theta: Tensors) -> tuple[Gradient, list[Gradient], Any]:
            batch = inputs.values.val_batch(j)
            L, each = self._kernels.validate(local, unweighed(batch), pure_steps.rows(theta), along, rows=rows)
            return L, each, batch

        return validation_of_ranks(inputs.form, j, point.theta, of_part)

    def validation_value(self, inputs: Inputs, point: Point) -> Gradient:
        """L_val, by the kernel of its gradient."""
        return self.validation(inputs, point, rows=False)[0]

    def _gradient(self, inputs: Inputs, point: Point, *, keep_graph: bool) -> Gradient:
        """Line 5."""
        j = point.j

        def of_part(theta: Tensors) -> tuple[Gradient, Any]:
            G_j, sound = self._kernels.loss.gradient(self._joined, self._local, j, pure_steps.rows(theta))
            batch = inputs.values.batch(j)
            if at_once(inputs.device) and not math.isfinite(sound.item()):
                check_finite(j, theta, G_j, batch, inputs.form.names)
            return G_j, batch

        G_j = gradient_of_ranks(inputs.form, j, point.theta, of_part)
        return G_j if keep_graph else G_j._replace(pull=None)

    def _products(self, inputs: Inputs, j: int, G_j: Gradient, V: Tensors, g: Tensor | None) -> tuple[Tensors, Tensors]:
        """V_j Hessian as this rank goes on with it, and V_j mixed."""
        pull = G_j.pull
        assert pull is not None

        def of_part(V: Tensors) -> Products:
            with torch.no_grad():
                return Products(*pull(V, g), False, frozenset(), None)

        products = products_of_ranks(inputs.form, j, G_j, V, inputs.values.phi_loss, of_part)
        return products.curvature, products.mixed
