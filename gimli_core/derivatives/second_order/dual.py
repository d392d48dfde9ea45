"""Forward mode: parameters that carry a direction."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gimli_core.derivatives.kernels import twice_differentiable
from gimli_core.notation import Tensors

__all__ = ["duals", "made_dual", "tangent"]


@contextmanager
def duals(theta: Tensors, V: Tensors) -> Iterator[Tensors]:
    """theta + e V, for reverse mode too, for as long as the block lasts; both modes are on within it."""
    _load()
    # Within the forward of a torch.autograd.Function both modes are off, in its backward the reverse one.
    with forward_ad.dual_level(), forward_ad._set_fwd_grad_enabled(True), torch.enable_grad(), twice_differentiable():
        # A direction is laid out as its primal, so no two entries of that may share memory, as expanded ones do.
        leaves = {k: (v if v.is_contiguous() else v.clone()).detach().requires_grad_() for k, v in theta.items()}
        yield {k: forward_ad.make_dual(leaf, V[k].detach()) for k, leaf in leaves.items()}


def made_dual(x: Tensor, direction: Tensor) -> Tensor:
    """x + e direction, within `duals`. Both have one shape, any."""
    dual: Tensor = forward_ad.make_dual(x.detach(), direction.detach())
    return dual


def tangent(x: Tensor) -> Tensor | None:
    """dx/de, or None where x does not depend on e. It has the shape of x."""
    along: Tensor | None = forward_ad.unpack_dual(x).tangent
    return along


@functools.cache
def _load() -> None:
    """torch reads some forward formulas when they are first needed, and warns of its own way to do so."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
