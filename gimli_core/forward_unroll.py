"""Lines 4-7: one step of the inner loop forwards. Nothing of the backward sweep is known here."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.finite import at_once, check_finite
from gimli_core.derivatives.first_order import Gradient, gradient
from gimli_core.derivatives.over_parts import gradient_of_parts
from gimli_core.environment import keeping_buffers
from gimli_core.lines_over_ranks import gradient_of_ranks
from gimli_core.notation import Tensors
from gimli_core.optimizers.interface import with_path
from gimli_core.optimizers.seen import seeing
from gimli_core.record import Event, Point

__all__ = ["as_changed", "inner_gradient", "step"]


def inner_gradient(inputs: Inputs, point: Point, *, keep_graph: bool) -> Gradient:
    """Line 5: G_j = grad_theta ell_j(theta_j, phi_loss). Cost 3F.

    Of a batch in parts the sum over them, without a graph. The graph is always recorded, and dropped at once if it is
    not to be kept: without it normalisations and other modules take another kernel, and theta_{j+1} would depend on
    the memory schedule in the last bits.
    """
    form, j, buffers = inputs.form, point.j, inputs.environment.buffers

    def of_batch(theta: Tensors) -> tuple[Gradient, Any]:
        inner = inputs.inner_loss(j)
        try:
            with inputs.environment.alone(), keeping_buffers(buffers) if keep_graph and buffers else nullcontext():
                if form.in_parts:
                    G_j = gradient_of_parts(inner, theta)
                else:
                    G_j = gradient(inner, theta, keep_graph=True, recorded=form.recorded)
        except Exception as error:
            error.add_note(f"at inner step j = {j} of {form.steps}")
            raise
        if at_once(inputs.device):
            check_finite(j, theta, G_j, inner.batch, form.names)
        return G_j, inner.batch

    G_j = gradient_of_ranks(form, j, point.theta, of_batch)
    if G_j.unused:
        inputs.look_for_missed(j, G_j)
    return G_j if keep_graph else G_j._replace(graph=None)


def as_changed(G_j: Gradient, G: Tensors) -> Gradient:
    """G_j with what line 5 was left with: an entry that the loss does not use takes part once it is changed from 0."""
    if G is G_j.theta:
        return G_j
    return G_j._replace(theta=G, unused=frozenset(k for k in G_j.unused if not bool(G[k].any())))


def step(
    inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, kept_gradient: Gradient | None = None
) -> Generator[Event, None, tuple[Gradient, Point]]:
    """Lines 5 and 6: from (theta_j, s_j) to G_j, unless it is `kept_gradient` already, and (theta_{j+1}, s_{j+1})."""
    j = point.j
    G_j = inner_gradient(inputs, point, keep_graph=keep_graph) if kept_gradient is None else kept_gradient  # line 5
    computed = Event(5, j, {"loss": G_j.loss, "G": G_j.theta}, replay, {"theta": point.theta})
    yield computed
    G_j = as_changed(G_j, computed.values["G"])
    phi_opt = seeing(inputs.form.optimizer, inputs.values.hyper.at(j), G_j.loss)
    used = with_path(inputs.form.optimizer, G_j.theta, G_j.unused)
    theta, s = inputs.form.optimizer.step_used(point.theta, point.state, used, phi_opt)  # line 6
    inputs_of_line = {"theta": point.theta, "s": point.state, "G": G_j.theta, "phi_opt": phi_opt}
    computed = Event(6, j, {"theta": theta, "s": s}, replay, inputs_of_line)
    yield computed
    return G_j, Point(j + 1, computed.values["theta"], computed.values["s"], None)
