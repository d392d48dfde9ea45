"""Reverse over forward: the gradient of the loss's derivative in direction V_j, from theta_j alone.

    V_j Hessian, V_j mixed = grad over (theta, phi_loss) of d/de ell_j(theta_j + e V_j, phi_loss)

and of g_j ell_j in the same pass, for a rule that sees the loss.

NOTE [formulas in place]
torch's forward formulas of softmax and logsumexp change a tensor in place that their own derivative needs, unless
a tensor of another kind may be about; a dispatch mode, which does nothing else here, says so.

In torch 2.13 the forward formulas of layer_norm, and of batch_norm and instance_norm in training, take the batch's mean
and deviation for constants when they are differentiated in turn: this mean is then wrong, and `choose` finds it out.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd import forward_ad

from gimli_core.derivatives.evaluate import LossOfTheta, differentiate, evaluate
from gimli_core.derivatives.module_weights import noting
from gimli_core.derivatives.operations import Operations
from gimli_core.derivatives.second_order.dual import duals, tangent
from gimli_core.derivatives.second_order.products import Products, collect
from gimli_core.notation import Tensors

__all__ = ["products"]


def products(
    inner: LossOfTheta, theta: Tensors, V: Tensors, g: Tensor | None = None, *, curvature: bool = True
) -> Products:
    """Both products in one pass; without `curvature` only the mixed one, and zeros for the other. V has the shapes of
    theta, g is a scalar, or [T]; the products have the shapes of theta and phi_loss.

    Cost: 9F; keeps nothing between line 5 and here, and for its time the activations of the loss, twice.
    """
    with duals(theta, V) as theta_dual:
        phi_leaf = {k: v.detach().requires_grad_() for k, v in inner.phi_loss.items()}
        with noting() as weights, Operations():
            loss, _ = evaluate(inner.function, inner.name, {**inner.frozen, **theta_dual}, phi_leaf, inner.batch)
        along_V = tangent(loss)
        if g is not None:
            along_g = g * forward_ad.unpack_dual(loss).primal
            along_V = along_g if along_V is None else along_V + along_g
        asked = [*(theta_dual.values() if curvature else ()), *phi_leaf.values()]
        with weights.in_place():
            by_input = (None,) * len(asked) if along_V is None else differentiate(along_V, asked)
        return collect(theta, inner.phi_loss, (*(() if curvature else (None,) * len(theta)), *by_input), loss)
