"""With second_order/, the only production caller of autograd: gradients of the losses.

Nothing in either differentiates an optimizer. Autograd is asked for

    G_j                        line 5     gradient(...)
    B_J, A_loss's first term   8, 9       gradients(...), one for each outer loss
    V_j Hessian, V_j mixed     13, 14     second_order/, a choice of means
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gimli_core.derivatives.evaluate import LossOfTheta, differentiate, evaluate, task_shape
from gimli_core.derivatives.kernels import twice_differentiable
from gimli_core.derivatives.module_weights import ModuleWeights, noting
from gimli_core.errors import unexpected
from gimli_core.layout import dense
from gimli_core.notation import Tensors

__all__ = ["Gradient", "Graph", "gradient", "gradients", "hessian"]

NONE: frozenset[str] = frozenset()


class Layout(Protocol):
    """How tensors lie in one vector, for a loss that is handed the vector (transforms/one_vector.py)."""

    def names(self, theta: Tensors) -> Tensors:
        """Views of the vector, by name."""

    def theta(self, theta: Tensors) -> Tensors:
        """Tensors by name as the vector."""


class Graph(NamedTuple):
    """A gradient that can still be differentiated, and the leaves it hangs from.

    The leaves are single tensors where theta is one vector: taking that apart and joining it again are then nodes of
    no graph, and what the loss does not use is seen.
    """

    G: tuple[Tensor, ...]
    theta: Tensors
    phi_loss: Tensors
    weights: ModuleWeights  # by modules, while the loss was evaluated
    loss: Tensor
    layout: Layout | None  # of theta, if it is one vector


class Gradient(NamedTuple):
    """A loss and its gradient at one point, detached, and the graph if it was kept."""

    loss: Tensor  # one number, or [T] of T tasks; of an outer loss also [k] or [T, k]
    theta: Tensors  # G_j for the inner loss, a term of B_j for the validation loss
    phi_loss: Tensors  # explicit dependence on phi_loss; empty unless asked for
    graph: Graph | None
    # Tensors, by name, to which the loss has no gradient path; their gradient is 0.
    unused: frozenset[str] = NONE
    aux: Any = None  # what the loss returns beside its value
    pull: Callable[..., tuple[Tensors, Tensors]] | None = None  # in place of the graph: (V, g) -> the products of V
    share: tuple[float, bool] | None = None  # what this rank's part of the batch counted for (over_ranks.py)


def gradient(
    loss: LossOfTheta, theta: Tensors, *, of_phi: bool = False, keep_graph: bool = False, recorded: bool = False
) -> Gradient:
    """The loss and its gradient with respect to theta (and to phi_loss, if `of_phi`). The loss is a scalar, or [T] or
    [k]; the gradient has the shapes of theta and phi_loss.

    An entry that the loss does not depend on has gradient 0, and is named in `unused`: an optimizer leaves it alone.

    Cost: 3F; with `keep_graph` the activations of the gradient stay until the graph goes. With `recorded` they stay as
    long as what is returned, which is then attached to theta and phi_loss, and not only to the graph's own leaves.
    """
    with torch.enable_grad(), twice_differentiable() if keep_graph else nullcontext():
        at = _evaluated(loss, theta, of_phi=of_phi or keep_graph, recorded=recorded)
        return _gradient(at, loss.name, of_phi=of_phi, keep_graph=keep_graph, recorded=recorded)


def gradients(
    loss: LossOfTheta, theta: Tensors, *, along: Tensor | None = None, rows: bool = True, recorded: bool = False
) -> tuple[Gradient, list[Gradient]]:
    """A loss of one number or of k, and the gradient of each with respect to theta and phi_loss.

    Args:
        along: a cotangent `[k]`: the gradient of `along · loss` alone, in one pass.
        rows: whether k numbers without a cotangent are differentiated; one number always is.
        recorded: as in `gradient`, of one number.

    Returns:
        (the loss alone, k gradients, or one, or none).

    Cost: F, and 2F for each gradient.
    """
    with torch.enable_grad():
        at = _evaluated(loss, theta, of_phi=True, vector=True, recorded=recorded)
        L = Gradient(at.loss if recorded else at.loss.detach(), {}, {}, None, aux=at.aux)
        if L.loss.shape == task_shape(loss.function):
            return L, [_gradient(at, loss.name, of_phi=True, recorded=recorded)]
        if along is not None:
            return L, [_gradient(at, loss.name, of_phi=True, along=along)]
        if not rows:
            return L, []
        units = torch.eye(at.loss.shape[-1], dtype=at.loss.dtype, device=at.loss.device)
        last = len(units) - 1
        return L, [_gradient(at, loss.name, of_phi=True, along=e, retain=i < last) for i, e in enumerate(units)]


class _Evaluated(NamedTuple):
    """A loss with its graph, and the leaves that it hangs from."""

    loss: Tensor
    theta: Tensors
    phi_loss: Tensors
    weights: ModuleWeights
    aux: Any
    layout: Layout | None


def _evaluated(
    loss: LossOfTheta, theta: Tensors, *, of_phi: bool, vector: bool = False, recorded: bool = False
) -> _Evaluated:
    function = loss.function
    layout: Layout | None = getattr(function, "layout", None)
    if layout is not None:
        function, theta = function.loss, layout.names(theta)  # type: ignore[attr-defined]
    if layout is not None and not recorded:  # views that are nobody else's
        theta_leaf = {k: v.requires_grad_() for k, v in theta.items()}
    else:
        theta_leaf = {k: _leaf(v, True, recorded) for k, v in theta.items()}
    phi_leaf = {k: _leaf(v, of_phi, recorded) for k, v in loss.phi_loss.items()}
    with noting() as weights:
        value, aux = evaluate(function, loss.name, {**loss.frozen, **theta_leaf}, phi_leaf, loss.batch, vector=vector)
    return _Evaluated(value, theta_leaf, phi_leaf, weights, aux, layout)


def _gradient(
    at: _Evaluated,
    name: str,
    *,
    of_phi: bool,
    keep_graph: bool = False,
    along: Tensor | None = None,
    retain: bool = False,
    recorded: bool = False,
) -> Gradient:
    """The gradient of a loss, of its sum over tasks, or of `along · loss`; with `retain` another may follow."""
    loss, theta, phi_loss, weights, aux, layout = at
    inputs = [*theta.values(), *(phi_loss.values() if of_phi else ())]

    def derivative(create_graph: bool) -> tuple[Tensor | None, ...]:
        return differentiate(loss, inputs, create_graph=create_graph, along=along, retain=retain)

    with weights.in_place():
        gradients = derivative(keep_graph or recorded or bool(weights.later))
    if weights.later and weights.changes(gradients, lambda: derivative(True)):
        raise unexpected(
            name,
            "a module with work put off until backward (checkpoints) to have one set of weights",
            "one that is called with several in one loss",
            "Leave out the checkpoints, give each set a "
            "module of its own, or run tasks one at a time: gimli.Tasks(T, chunk=1).",
        )
    missed = [k for k, g in zip(theta, gradients, strict=False) if g is None]
    if len(missed) == len(theta):
        raise unexpected(
            name,
            "a loss that depends on theta",
            "a loss with no gradient path to any entry of theta",
            "Compute it from the theta it is called with, without .detach(), .item() or torch.no_grad().",
        )
    for k, g in zip(theta, gradients, strict=False):
        if g is not None and g.layout != torch.strided:
            raise unexpected(
                name,
                "a dense gradient",
                f"a sparse one for {k!r}, which has no second derivative",
                "Build the embedding with sparse=False; gimli.optimizers.SparseAdam takes dense gradients.",
            )
    G = tuple([torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)])
    values = G if recorded else [g.detach() for g in G]
    by_name = dict(zip(theta, values, strict=False))
    return Gradient(
        loss if recorded else loss.detach(),
        {k: dense(g) for k, g in by_name.items()} if layout is None else layout.theta(by_name),  # which joins them anew
        {k: dense(g) for k, g in zip(phi_loss, values[len(theta) :], strict=True)} if of_phi else {},
        Graph(G, theta, phi_loss, weights, loss, layout) if keep_graph else None,
        frozenset(missed) if missed else NONE,
        aux,
    )


def _leaf(x: Tensor, learned: bool, recorded: bool) -> Tensor:
    """What a loss is called with, to be differentiated by; where that is recorded, a view of x with a node of its own,
    so that only what the loss does with it counts, whatever else x is used for."""
    return x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_(learned)


def hessian(graph: Graph) -> Tensor:
    """The whole Hessian [n, n] of the inner loss, theta flattened in its own order; for looking at small problems.

    Keeps the graph. Cost: 6F a row.
    """
    leaves = list(graph.theta.values())
    rows = []
    for g in (entry for G in graph.G for entry in G.reshape(-1)):
        row: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if g.requires_grad:
            with graph.weights.in_place():
                row = torch.autograd.grad(g, leaves, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat([(torch.zeros_like(x) if p is None else p).reshape(-1) for p, x in zip(row, leaves, strict=True)])
        )
    return torch.stack(rows)
