"""Lines 8-14: the validation loss, and one step of the backward sweep. Nothing of the unroll is known here.

With B' = B_{j+1} and S' = S_{j+1} the adjoints of what step j returned:

    V_j     = B' dtheta'/dG + S' ds'/dG                              # line 11
    A_opt  += B' dtheta'/dphi_opt + S' ds'/dphi_opt                  # line 12
    A_loss += V_j grad_phi grad_theta ell_j                          # line 13
    B_j     = B' dtheta'/dtheta + S' ds'/dtheta + V_j Hessian ell_j  # line 14
    S_j     = B' dtheta'/ds + S' ds'/ds

A rule that sees the loss adds g_j = B' dtheta'/dell + S' ds'/dell: g_j grad_phi ell_j to line 13, g_j G_j to line 14
(optimizers/seen.py).

Derivation: appendix_proofs/augmented_state.py.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.first_order import Gradient, gradients
from gimli_core.derivatives.over_parts import products_of_parts
from gimli_core.derivatives.second_order import Products, from_a_point, reverse_over_reverse, tell_gap
from gimli_core.lines_over_ranks import products_of_ranks, validation_of_ranks
from gimli_core.notation import State, Tensors
from gimli_core.optimizers.interface import with_path
from gimli_core.optimizers.seen import adjoint_of_loss, asked, seeing, times
from gimli_core.record import Event, Point, Swept

__all__ = ["second_order_products", "step", "validation_gradients"]


def validation_gradients(
    inputs: Inputs, point: Point, along: Tensor | None = None, *, rows: bool = True
) -> tuple[Gradient, list[Gradient]]:
    """Lines 8 and 9: L_val, and for each of its numbers the explicit derivative in phi_loss and grad_theta L_val.

    `along` and `rows` as in `gradients`. Cost F, and 2F for each gradient.
    """

    def of_batch(theta: Tensors) -> tuple[Gradient, list[Gradient], Any]:
        outer = inputs.outer_loss(point.j)
        with inputs.environment.alone():
            L, each = gradients(outer, theta, along=along, rows=rows, recorded=inputs.form.recorded)
        return L, each, outer.batch

    return validation_of_ranks(inputs.form, point.j, point.theta, of_batch)


def step(
    inputs: Inputs, point: Point, G_j: Gradient, B: Tensors, S: State, *, replay: bool, keep_graph: bool = False
) -> Generator[Event, None, Swept]:
    """Lines 11-14: from B_{j+1}, S_{j+1} to B_j, S_j and the increments of A. Frees the graph of G_j, unless it is to
    be kept for the adjoints of another outer loss.

    Cost 6F from a graph, 9F from a point, nothing where no second-order product is asked for.
    """
    j, form = point.j, inputs.form
    phi_opt = seeing(form.optimizer, inputs.values.hyper.at(j), G_j.loss)
    used = with_path(form.optimizer, G_j.theta, G_j.unused)
    wanted = asked(form.optimizer, form.wanted)
    pulled = form.optimizer.pullback_used(point.theta, point.state, used, phi_opt, B, S, wanted)
    pulled, g = adjoint_of_loss(form.optimizer, pulled, G_j.loss)
    if len(used) < len(G_j.theta):  # what the loss does not use moves nothing
        pulled = pulled._replace(V={k: pulled.V.get(k, zero) for k, zero in G_j.theta.items()})
    inputs_of_line = {
        "theta": point.theta,
        "s": point.state,
        "G": G_j.theta,
        "phi_opt": phi_opt,
        "B": B,
        "S": S,
        "graph": G_j.graph,
    }
    computed = Event(11, j, {"V": pulled.V}, replay, inputs_of_line)  # line 11
    yield computed
    V = computed.values["V"]
    computed = Event(12, j, {"A_opt": pulled.A}, replay)  # line 12
    yield computed
    A_opt = computed.values["A_opt"]
    on = j > form.first or form.learned_start  # else nobody asks for B_j
    curvature, mixed, *_, again = second_order_products(inputs, point, G_j, V, g, curvature=on, keep_graph=keep_graph)
    computed = Event(13, j, {"A_loss": mixed}, replay)  # line 13
    yield computed
    A_loss = computed.values["A_loss"]
    B_j = {k: torch.add(direct, curvature[k]) for k, direct in pulled.B.items()}  # line 14; to first order, plus 0
    S_j = pulled.S if form.augmented else form.optimizer.zero_adjoint(point.state)
    computed = Event(14, j, {"B": B_j, "S": S_j, "direct": pulled.B, "curvature": curvature}, replay)
    yield computed
    return Swept(computed.values["B"], computed.values["S"], A_opt, A_loss, again)


def second_order_products(
    inputs: Inputs,
    point: Point,
    G_j: Gradient,
    V: Tensors,
    g: Tensor | None = None,
    *,
    curvature: bool = True,
    mixed: bool = True,
    keep_graph: bool = False,
) -> Products:
    """V_j Hessian (zeros to first order) and V_j mixed, by the means of `inputs`; with g_j times ell_j's gradients.
    Both have the shapes of what they are keyed by: theta and phi_loss; g_j is a scalar, or [T].

    Zeros for the one of the two that is not asked for.
    """
    form = inputs.form
    curvature = curvature and form.curvature
    if curvature or (mixed and form.phi_loss):

        def of_part(V: Tensors) -> Products:
            with inputs.environment.alone():
                try:
                    return _asked_of_loss(inputs, point, G_j, V, g, curvature, mixed, keep_graph)
                except RuntimeError as error:
                    tell_gap(form.second_order, point.j, error)
                    raise

        shared = inputs.values.phi_loss if mixed else {}
        products = products_of_ranks(form, point.j, G_j, V, shared, of_part, curvature=curvature)
    else:
        zeros = {k: v.new_zeros(()).expand_as(v) for k, v in V.items()}
        products = Products(zeros, {}, False, frozenset(), None)
    if g is not None and not curvature:  # with curvature it is in there already
        products = products._replace(curvature={k: times(g, G) for k, G in G_j.theta.items()})
    return products


def _asked_of_loss(
    inputs: Inputs, point: Point, G_j: Gradient, V: Tensors, g: Tensor | None, curvature: bool, mixed: bool, keep: bool
) -> Products:
    """The products of the inner loss: from the graph of G_j if that was kept, and else from the point."""
    form = inputs.form
    if form.keeps_graph:
        assert G_j.graph is not None
        return reverse_over_reverse.products(
            G_j.graph, V, g, curvature=curvature, mixed=mixed, keep=keep, recorded=form.recorded
        )
    assert point.snapshot is not None
    inputs.environment.restore(point.snapshot)  # what the loss met when G_j was computed
    mean = partial(products_of_parts, form.second_order) if form.in_parts else from_a_point(form.second_order)
    theta = form.gathered(point.theta, "lines 13-14, theta_j", point.j)
    return mean(inputs.inner_loss(point.j), theta, V, g, curvature=curvature)
