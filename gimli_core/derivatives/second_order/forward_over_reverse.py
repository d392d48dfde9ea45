"""Forward over reverse: the derivative of the gradient in direction V_j, from theta_j alone.

    V_j Hessian = d/de grad_theta ell_j(theta_j + e V_j, phi_loss)       the Hessian is symmetric
    V_j mixed   = d/de grad_phi ell_j(theta_j + e V_j, phi_loss)         the order of differentiation does not matter

and, for a rule that sees the loss, of (1 + e g_j) ell_j in its place, which adds g_j times both gradients of ell_j.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""

from __future__ import annotations

import torch
from torch import Tensor

from gimli_core.derivatives.evaluate import LossOfTheta, differentiate, evaluate
from gimli_core.derivatives.module_weights import noting
from gimli_core.derivatives.second_order.dual import duals, made_dual, tangent
from gimli_core.derivatives.second_order.products import Products, collect
from gimli_core.notation import Tensors

__all__ = ["products"]


def products(
    inner: LossOfTheta, theta: Tensors, V: Tensors, g: Tensor | None = None, *, curvature: bool = True
) -> Products:
    """Both products in one pass; without `curvature` zeros for that one, at the same cost. V has the shapes of theta, g
    is a scalar, or [T]; the products have the shapes of theta and phi_loss.

    Cost: 9F; keeps nothing between line 5 and here, and for its time the activations of the loss, twice.
    """
    with duals(theta, V) as theta_dual:
        phi_leaf = {k: v.detach().requires_grad_() for k, v in inner.phi_loss.items()}
        with noting() as weights:
            loss, _ = evaluate(inner.function, inner.name, {**inner.frozen, **theta_dual}, phi_leaf, inner.batch)
        with weights.in_place():
            weighed = loss if g is None else loss * made_dual(torch.ones_like(loss), g)
            G = differentiate(weighed, [*theta_dual.values(), *phi_leaf.values()])
        tangents = [None if g is None else tangent(g) for g in G]
        return collect(
            theta, inner.phi_loss, tangents if curvature else [None] * len(theta) + tangents[len(theta) :], loss
        )
