"""What every mean returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors

__all__ = ["Products", "collect"]


class Products(NamedTuple):
    """V_j times the two second derivatives of the inner loss, detached unless they are recorded."""

    curvature: Tensors  # V_j Hessian, line 14
    mixed: Tensors  # V_j grad_phi grad_theta ell_j, line 13
    linear: bool  # no path from theta to G_j was found: the curvature is 0
    reached: frozenset[str]  # entries of phi_loss with a path to G_j
    loss: Tensor | None  # ell_j, where it was evaluated again


def collect(
    theta: Tensors,
    phi_loss: Tensors,
    by_input: Sequence[Tensor | None],
    loss: Tensor | None,
    recorded: bool = False,
    join: Callable[[Tensors], Tensors] | None = None,
) -> Products:
    """`by_input` holds a product for each entry of theta, then of phi_loss; None where there is no path, for 0. `join`
    brings the curvature into the form of theta, if it has another than the loss was handed.

    Each has the shape of its entry; the loss is a scalar, or [T].
    """
    n = len(theta)
    of_theta, of_phi = by_input[:n], by_input[n:]

    def by_name(tensors: Tensors, products: Sequence[Tensor | None]) -> Tensors:
        return {
            k: torch.zeros_like(x) if p is None else p.detach() if p.requires_grad and not recorded else p
            for (k, x), p in zip(tensors.items(), products, strict=True)
        }

    curvature = by_name(theta, of_theta)
    return Products(
        curvature if join is None else join(curvature),
        by_name(phi_loss, of_phi),
        all(p is None for p in of_theta),
        frozenset([k for k, p in zip(phi_loss, of_phi, strict=True) if p is not None]),
        None if loss is None else loss.detach(),
    )
