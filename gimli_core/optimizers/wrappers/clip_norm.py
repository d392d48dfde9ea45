"""Clipping by the global norm, as `torch.nn.utils.clip_grad_norm_` does it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Hyper, Tensors
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.wrappers.interface import GradientWrapper

__all__ = ["ClipNorm"]


@dataclass(frozen=True, eq=False)
class ClipNorm(GradientWrapper):
    """The gradient, scaled down where its norm over all tensors exceeds a bound.

        n  = (Σ |G|^p)^(1/p)   over all elements of all tensors; max |G| for p = inf
        c  = min(1, max_norm / (n + 1e-6))
        G ← c·G

    c depends on every element, so V couples all tensors: V = c·Ḡ + <Ḡ, G>·dc/dn·dn/dG. For p = inf elements that tie
    for the maximum share its derivative.

    Args:
        inner: the optimizer that gets the clipped gradient.
        max_norm: one number, or a 0-dimensional tensor; it can be a meta-parameter.
        norm_type: p >= 1, not differentiable.

    Raises:
        ArgumentError: a max_norm that is not one number, a norm_type below 1.

    Cost: no state. Source: `torch.nn.utils.clip_grad_norm_`.

    >>> import torch, gimli_core as gimli
    >>> clipped = gimli.optimizers.ClipNorm(gimli.optimizers.SGD(lr=1.0), max_norm=1.0)
    >>> theta, G = {"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in clipped.hyperparameters().items()}}
    >>> clipped.step(theta, clipped.initial_state(theta, hyper), G, hyper)[0]["w"]
    tensor([-0.6000, -0.8000])
    """

    max_norm: Any = hyperparameter(1.0)
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.norm_type >= 1:
            raise unexpected("ClipNorm(norm_type=…)", "a number >= 1, or inf", repr(self.norm_type), "2.0 is usual.")
        if getattr(self.max_norm, "ndim", 0) or isinstance(self.max_norm, dict):
            raise unexpected(
                "ClipNorm(max_norm=…)",
                "one number for all tensors",
                repr(self.max_norm),
                "Only the norm over all is clipped.",
            )

    def own_parameters(self) -> tuple[str, ...]:
        return ("max_norm", *super().own_parameters())

    def _parts(self, G: Tensors, hyper: Hyper) -> tuple[Tensor, Tensor, Tensor]:
        """(n + 1e-6, whether it is clipped, c)."""
        norms = torch.stack([torch.linalg.vector_norm(g, self.norm_type) for g in _filled(G)])
        n = torch.linalg.vector_norm(norms, self.norm_type) + 1e-6
        c = next(iter(hyper.values()))["max_norm"] / n
        return n, c < 1, torch.where(c < 1, c, 1.0)

    def _transform(self, theta: Tensors, G: Tensors, hyper: Hyper) -> Tensors:
        _, _, c = self._parts(G, hyper)
        return {k: g * c.to(g) for k, g in G.items()}

    def _norm_slope(self, G: Tensors, n: Tensor) -> Tensors:
        """dn / dG."""
        if self.norm_type == float("inf"):
            top = torch.stack([g.abs().max() for g in _filled(G)]).max()
            ties = {k: (g.abs() == top).to(g) * g.sign() for k, g in G.items()}
            count = torch.stack([tie.abs().sum() for tie in ties.values()]).sum()
            return {k: tie / count for k, tie in ties.items()}
        n = (n - 1e-6).clamp(min=torch.finfo(n.dtype).tiny)  # at G = 0 nothing is clipped, and this is not used
        return {k: g.sign() * (g.abs() / n) ** (self.norm_type - 1) for k, g in G.items()}

    def _transform_pullback(
        self, theta: Tensors, G: Tensors, hyper: Hyper, adjoint: Tensors, wanted: Collection[str]
    ) -> tuple[Tensors, Tensors, dict[str, Tensors]]:
        n, clipped, c = self._parts(G, hyper)
        along = torch.stack([(adjoint[k] * g).sum() for k, g in G.items()]).sum()
        n_bar = torch.where(clipped, -along * c / n, 0.0)
        V = {k: adjoint[k] * c.to(adjoint[k]) + n_bar.to(slope) * slope for k, slope in self._norm_slope(G, n).items()}
        first = next(iter(G))  # one number for all tensors: its adjoint is noted once
        A = {first: {"max_norm": torch.where(clipped, along / n, 0.0)}} if "max_norm" in wanted else {}
        return V, {}, A


def _filled(G: Tensors) -> list[Tensor]:
    """The gradients that hold a number, or all of them: the norm of none has no value where it is a maximum."""
    return [g for g in G.values() if g.numel()] or [next(iter(G.values())).new_zeros(1)]
