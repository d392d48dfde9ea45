"""Which mean to take: the one asked for, or the first that this loss has every formula for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gimli_core.derivatives.second_order import forward_over_reverse, reverse_over_forward
from gimli_core.derivatives.second_order.products import Products
from gimli_core.notation import Tensors

__all__ = ["ASKED", "BY_GRAPH", "MEANS", "Choice", "choose", "from_a_point", "probing"]

# In the order of preference: reverse over reverse is the fastest on CPU and has the fewest gaps.
MEANS = ("reverse_over_reverse", "forward_over_reverse", "reverse_over_forward")
BY_GRAPH = MEANS[0]  # the only one that keeps something of line 5
ASKED = ("auto", *MEANS)


def from_a_point(mean: str) -> Callable[..., Products]:
    """The function that takes the products from theta_j alone, for the means that can."""
    return {
        "forward_over_reverse": forward_over_reverse.products,
        "reverse_over_forward": reverse_over_forward.products,
    }[mean]


def probing(theta: Tensors) -> Tensors:
    """A direction of the shapes of theta that no symmetry of a loss makes a special one."""
    return {k: torch.arange(1, v.numel() + 1, device=v.device).to(v).cos().reshape(v.shape) for k, v in theta.items()}


class Choice(NamedTuple):
    """A mean that works, its products at the probe, and why those before it do not; no mean if none works."""

    mean: str | None
    products: Products | None
    reasons: dict[str, str]

    def __str__(self) -> str:
        return "; ".join(f"{mean}: {reason}" for mean, reason in self.reasons.items())


def choose(asked: str, at: Callable[[str, Tensors], Products], V: Tensors) -> Choice:
    """Try the means at one point, the one asked for first.

    Forward mode does not see torch.no_grad(), and some of its formulas cannot be differentiated in turn without
    saying so. So its products are held against those of reverse over reverse, or, where that has no formula, against
    themselves: V H must obey (V H H)·V = |V H|², as H is symmetric.

    Args:
        asked: of `ASKED`; "auto" is the order of `MEANS`.
        at: the products of a mean along a direction, at the point of the probe.
        V: the direction to probe.
    """
    order = MEANS if asked == "auto" else (asked, *(mean for mean in MEANS if mean != asked))
    results: dict[str, Products | str] = {}

    def products(mean: str) -> Products | str:
        """The products of a mean, or why it has none; once."""
        if mean not in results:
            try:
                results[mean] = at(mean, V)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # NotImplementedError is one
                results[mean] = str(error).splitlines()[0].rstrip(".")
        return results[mean]

    reasons: dict[str, str] = {}
    for mean in order:
        tried = products(mean)
        if isinstance(tried, Products):
            reason = None if mean == BY_GRAPH else _fault(mean, tried, products(BY_GRAPH), at, V)
            if reason is None:
                return Choice(mean, tried, reasons)
            reasons[mean] = reason
        else:
            reasons[mean] = tried
    return Choice(None, None, reasons)


def _fault(
    mean: str, result: Products, reference: Products | str, at: Callable[[str, Tensors], Products], V: Tensors
) -> str | None:
    """Why the products are wrong, or None.

    Right formulas are off by rounding. Wrong ones were seen to be off by 1 % (layer norm in a transformer) and more;
    in half precision that little is not told from rounding.
    """
    allowed = torch.finfo(next(iter(V.values())).dtype).eps ** 0.5
    product = _flat(result.curvature, result.mixed)
    if isinstance(reference, Products):
        expected = _flat(reference.curvature, reference.mixed)
        off, size = (product - expected).norm(), expected.norm()
        told = f"its product differs from that of {BY_GRAPH} by {{:.1g}} of its size"
    else:
        again = at(mean, result.curvature).curvature
        size = _flat(result.curvature).square().sum()
        off = (_flat(again) @ _flat(V) - size).abs()
        told = "its Hessian is not symmetric, by {:.1g} of its size"
    return None if off <= allowed * size else told.format((off / size).item())


def _flat(*trees: Tensors) -> Tensor:
    """As one vector in float64."""
    return torch.cat([t.detach().double().reshape(-1) for tree in trees for t in tree.values()])
