"""Reverse over reverse: one reverse pass through the kept graph of G_j.

    V_j Hessian, V_j mixed = grad over (theta, phi_loss) of <G_j(theta_j, phi_loss), V_j>

and of g_j ell_j(theta_j, phi_loss) in the same pass, for a rule that sees the loss (optimizers/seen.py).
"""

from __future__ import annotations

from torch import Tensor

from gimli_core.derivatives.evaluate import pulled
from gimli_core.derivatives.first_order import Graph
from gimli_core.derivatives.second_order.products import Products, collect
from gimli_core.notation import Tensors

__all__ = ["products"]


def products(
    graph: Graph,
    V: Tensors,
    g: Tensor | None = None,
    *,
    curvature: bool = True,
    mixed: bool = True,
    keep: bool = False,
    recorded: bool = False,
) -> Products:
    """Both products in one pass; without `curvature` or `mixed` zeros for that one. Frees the graph, unless it is to be
    kept for another V, or the products are `recorded`. V has the shapes of theta, g is a scalar, or [T]; the products
    have the shapes of theta and phi_loss.

    Cost: 6F; the graph holds the activations of the gradient from line 5 on.
    """
    layout = graph.layout
    V = V if layout is None else layout.names(V)
    inputs = [*graph.theta.values(), *graph.phi_loss.values()]
    n = len(graph.theta)
    asked = inputs[0 if curvature else n : None if mixed else n]
    # A gradient that is constant in theta and phi_loss (a linear loss) carries no graph: its products are 0.
    outputs = [G for G in graph.G if G.requires_grad]
    cotangents = [V[k] for k, G in zip(graph.theta, graph.G, strict=True) if G.requires_grad]
    if g is not None:
        outputs, cotangents = [*outputs, graph.loss], [*cotangents, g]
    by_input: tuple[Tensor | None, ...] = (None,) * len(asked)
    if outputs:
        with graph.weights.in_place():
            by_input = pulled(outputs, cotangents, asked, create_graph=recorded, retain=keep)
    before, after = (None,) * (0 if curvature else n), (None,) * (0 if mixed else len(inputs) - n)
    join = None if layout is None else layout.theta
    return collect(graph.theta, graph.phi_loss, (*before, *by_input, *after), None, recorded, join)
