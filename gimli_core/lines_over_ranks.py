"""Lines 5, 8-9 and 13-14 of all ranks of a mesh together, whatever computes a rank's own part of them.

A rank's part is handed theta_j and V_j as they are whole, and what it gives is summed and cut to what the rank goes on
with. Without a mesh the part is all there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gimli_core.arguments.form import Form
from gimli_core.derivatives.first_order import Gradient
from gimli_core.derivatives.over_ranks import gradient_over_ranks, products_over_ranks, validation_over_ranks
from gimli_core.derivatives.second_order import Products
from gimli_core.notation import Tensors

__all__ = ["gradient_of_ranks", "products_of_ranks", "validation_of_ranks"]


def gradient_of_ranks(
    form: Form, j: int, theta_j: Tensors, of_part: Callable[[Tensors], tuple[Gradient, Any]]
) -> Gradient:
    """Line 5: G_j and ell_j, from (the gradient of this rank's part, the part) at theta_j."""
    theta = form.gathered(theta_j, "line 5, theta_j", j)
    if form.data is None:
        return _cut(form, of_part(theta)[0])
    what, names = f"line 5, G_j at inner step j = {j} of {form.steps}", tuple(form.names(theta))
    return gradient_over_ranks(
        form.data, lambda: of_part(theta), theta, form.zero_loss(theta), names, what, form.pieces
    )[0]


def validation_of_ranks(
    form: Form, j: int, theta_j: Tensors, of_part: Callable[[Tensors], tuple[Gradient, list[Gradient], Any]]
) -> tuple[Gradient, list[Gradient]]:
    """Lines 8 and 9: L_val and the gradient of each outer loss, from those of this rank's part and the part."""
    theta = form.gathered(theta_j, f"lines 8-9, theta_{j}")
    if form.data is None:
        L, each, _ = of_part(theta)
        return L, [_cut(form, of_one) for of_one in each]
    return validation_over_ranks(form.data, lambda: of_part(theta), f"lines 8-9, L_val at theta_{j}", form.pieces)


def products_of_ranks(
    form: Form,
    j: int,
    G_j: Gradient,
    V_j: Tensors,
    phi_loss: Tensors,
    of_part: Callable[[Tensors], Products],
    *,
    curvature: bool = True,
) -> Products:
    """Lines 13-14: V_j Hessian and V_j mixed, from those of this rank's part along V_j. `phi_loss` is what all ranks
    share of it; without `curvature` V_j Hessian is not summed."""
    V = form.gathered(V_j, "lines 13-14, V_j", j)
    if form.data is None:
        products = of_part(V)
        curvature_of_part = form.part(products.curvature)
        same = curvature_of_part is products.curvature
        return products if same else products._replace(curvature=curvature_of_part)
    assert G_j.share is not None
    return products_over_ranks(
        form.data,
        lambda: of_part(V),
        G_j.share,
        V if curvature else {},
        phi_loss,
        G_j.loss if form.evaluates_again else None,
        f"lines 13-14, the products at inner step j = {j} of {form.steps}",
        form.pieces,
    )


def _cut(form: Form, G: Gradient) -> Gradient:
    """A gradient as the run goes on with it: itself, as mostly, where nothing is to be cut."""
    theta = form.part(G.theta)
    return G if theta is G.theta else G._replace(theta=theta)
