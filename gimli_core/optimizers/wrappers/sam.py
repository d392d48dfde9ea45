"""Sharpness-aware minimisation, as a loss whose gradient is SAM's.

SAM's step needs two gradients, one at theta and one at the perturbed weights. An optimizer of this engine sees one G,
so SAM is not an `Optimizer` here. It is the loss that changes: `sam(train_loss)` has the value of the loss at the
perturbed weights, and as its gradient SAM's

    g(theta) = grad ell(theta + e(theta)),   e = rho·grad ell(theta) / (|grad ell(theta)| + 1e-12),

with e held constant in the first derivative, as Foret et al. do, and not in the second: the engine's products use the
true Jacobian dg/dtheta = H(theta + e)·(I + de/dtheta), which is not symmetric, so that the meta-gradient is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Tensors

__all__ = ["sam"]

Loss = Callable[[Tensors, Tensors, Any], Tensor]


def sam(train_loss: Loss, rho: float | Tensor = 0.05, *, adaptive: bool = False) -> Loss:
    """The sharpness-aware form of an inner loss, for `gimli.Problem(sam(train_loss), ...)` with any optimizer.

    Args:
        train_loss: `(theta, phi_loss, batch) -> scalar`.
        rho: the radius. To learn it, leave it out here and put an entry "rho" into phi_loss: that one is used.
        adaptive: the scale-invariant form, e = rho·theta²·grad / |theta·grad| (Kwon et al. 2021).

    Returns:
        a loss with the same arguments.

    Cost: 6F for a gradient instead of 3F, and 9F more for its second-order products.
    Source: Foret et al. 2021, Algorithm 1.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (theta["w"] ** 2).sum() / 2
    >>> problem = gimli.Problem(gimli.optimizers.sam(loss, rho=0.5), loss, gimli.optimizers.SGD(lr=0.5))
    >>> gimli.meta_gradient(problem, {"w": torch.tensor([1.0])}, lambda j: None, None, steps=1).theta_J["w"]
    tensor([0.2500])
    """

    def sharp_loss(theta: Tensors, phi_loss: Tensors, batch: Any) -> Tensor:
        radius = phi_loss.get("rho", rho)
        with torch.enable_grad():
            leaves = {k: v if v.requires_grad else v.detach().requires_grad_() for k, v in theta.items()}
            moving = {k: v for k, v in leaves.items() if theta[k].requires_grad} or leaves
            before = train_loss({**theta, **moving}, phi_loss, batch)
            first = _gradient(before, moving)
            size = torch.stack(
                [((v.abs() if adaptive else 1) * first[k]).square().sum() for k, v in moving.items()]
            ).sum()
            scale = radius / (_flat_root(size) + 1e-12)
            perturbed = {k: v + scale * first[k] * (v * v if adaptive else 1) for k, v in moving.items()}
            loss = train_loss({**theta, **perturbed}, phi_loss, batch)
            second = _gradient(loss, perturbed)
        return _Supplied.apply(loss.detach(), len(moving), *moving.values(), *second.values())  # type: ignore[no-any-return]

    return sharp_loss


def _gradient(loss: Tensor, of: Tensors) -> Tensors:
    gradients = torch.autograd.grad(loss, list(of.values()), create_graph=True, allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(of.items(), gradients, strict=True)}


def _flat_root(x: Tensor) -> Tensor:
    """sqrt(x), with slope 0 at x = 0: a gradient of exactly zero is not perturbed."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


class _Supplied(torch.autograd.Function):
    """A number whose gradient in its first inputs is given by its last ones."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(arriving * g for g in ctx.saved_tensors), *(None,) * ctx.count)
