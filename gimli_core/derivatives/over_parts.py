"""Line 5, and lines 13 and 14, as sums over the parts of a batch: one graph at a time (micro_batches.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from gimli_core.derivatives.evaluate import LossOfTheta
from gimli_core.derivatives.first_order import Gradient, Layout, gradient
from gimli_core.derivatives.kernels import twice_differentiable
from gimli_core.derivatives.micro_batches import each, of_parts
from gimli_core.derivatives.second_order import BY_GRAPH, Products, from_a_point, reverse_over_reverse
from gimli_core.notation import Tensors

__all__ = ["gradient_of_parts", "products_of_parts"]


class _Sum:
    """A weighted sum of dicts of tensors, in float32 at least."""

    def __init__(self) -> None:
        self._total: Tensors = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, tensors: Tensors, weight: float) -> None:
        if not self._total:
            self._dtypes = {k: v.dtype for k, v in tensors.items()}
            wide = {k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in tensors.items()}
            self._total = {k: v * weight for k, v in wide.items()}
        elif tensors:
            torch._foreach_add_([self._total[k] for k in tensors], list(tensors.values()), alpha=weight)

    def total(self) -> Tensors:
        return {k: v.to(self._dtypes[k]) for k, v in self._total.items()}


class _Apart:
    """A loss of theta by the names of its tensors, which is one vector outside: taken apart and joined once a step, and
    not for every part. The identity where theta is no vector.
    """

    def __init__(self, loss: LossOfTheta) -> None:
        self._layout: Layout | None = getattr(loss.function, "layout", None)
        self.loss = loss if self._layout is None else loss._replace(function=loss.function.loss)  # type: ignore[attr-defined]

    def names(self, theta: Tensors) -> Tensors:
        """theta, G or V by name."""
        return theta if self._layout is None else self._layout.names(theta)

    def vector(self, theta: Tensors) -> Tensors:
        """The way back."""
        return theta if self._layout is None else self._layout.theta(theta)


def gradient_of_parts(loss: LossOfTheta, theta: Tensors) -> Gradient:
    """G_j = Σ_i w_i grad ell of part i, in the shapes of theta. Cost 3F, in the memory of one part.

    No schedule keeps a graph of parts, so none is recorded; the kernels are those of the sweep all the same, which may
    draw other random numbers than those that it cannot take.
    """
    apart = _Apart(loss)
    by_name = apart.names(theta)
    G, losses, unused, aux = _Sum(), _Sum(), None, []
    for weight, part in each(loss.batch):
        with twice_differentiable():
            of_part = gradient(apart.loss._replace(batch=part), by_name)
        G.add(of_part.theta, weight)
        losses.add({"loss": of_part.loss}, weight)
        unused = of_part.unused if unused is None else unused & of_part.unused
        aux.append(of_part.aux)
        del of_part  # or the next part would be evaluated beside it
    assert unused is not None
    return Gradient(losses.total()["loss"], apart.vector(G.total()), {}, None, unused, of_parts(aux, loss.name))


def products_of_parts(
    mean: str, inner: LossOfTheta, theta: Tensors, V: Tensors, g: Tensor | None, *, curvature: bool = True
) -> Products:
    """V_j Hessian and V_j mixed, Σ_i w_i times those of part i. Cost 9F, in the memory of one part.

    g is a scalar, or [T]; V_j has the shapes of theta.
    """
    apart = _Apart(inner)
    theta, V = apart.names(theta), apart.names(V)
    H, mixed, losses = _Sum(), _Sum(), _Sum()
    linear, reached = True, frozenset[str]()
    for weight, part in each(inner.batch):
        of_one = apart.loss._replace(batch=part)
        if mean in ("auto", BY_GRAPH):
            G = gradient(of_one, theta, keep_graph=True)
            graph, loss = G.graph, G.loss
            assert graph is not None
            del G  # a vector of the size of theta
            of_part = reverse_over_reverse.products(graph, V, g, curvature=curvature)._replace(loss=loss)
            del graph
        else:
            of_part = from_a_point(mean)(of_one, theta, V, g, curvature=curvature)
        H.add(of_part.curvature, weight)
        mixed.add(of_part.mixed, weight)
        if of_part.loss is not None:
            losses.add({"loss": of_part.loss}, weight)
        linear, reached = linear and of_part.linear, reached | of_part.reached
        del of_part  # or the next part would be evaluated beside it
    return Products(apart.vector(H.total()), mixed.total(), linear, reached, losses.total().get("loss"))
