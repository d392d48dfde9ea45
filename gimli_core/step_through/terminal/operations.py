"""What the small language of `expressions` computes with: operands, operations of bounded size, and the tools."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.step_through.page.summaries import norm, total
from gimli_core.trees import tensors

__all__ = ["TOOLS", "bounded", "number_or_tensor", "tensor_of"]

MOST_BITS = 4096  # of a whole number
MOST_ELEMENTS = 1 << 24  # of a tensor that an expression makes, unless it has operands as large


def number_or_tensor(value: Any) -> Any:
    if isinstance(value, (bool, int, float, Tensor)):
        return value
    do = "Take an entry of it, or norm(…)."
    raise unexpected("operand", "a number or a tensor", type(value).__name__, do)


def tensor_of(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    raise unexpected(what, "a tensor before it", type(value).__name__, "Take an entry of it.")


def bounded(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """The operation, unless its result would be too large to be waited for: looked at before it is begun."""
    operands = [value for value in (left, right) if isinstance(value, Tensor)]
    if operands:
        sizes = (value.to("meta") if isinstance(value, Tensor) else value for value in (left, right))
        elements = operation(*sizes).numel()
        if elements > max(MOST_ELEMENTS, *(value.numel() for value in operands)):
            do = "Take entries of its parts."
            raise unexpected("a tensor", f"at most {MOST_ELEMENTS:,} elements", f"{elements:,}", do)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operation is operator.pow:
            bits = left.bit_length() * max(right, 1)
        if bits > MOST_BITS:
            raise unexpected("a whole number", f"at most {MOST_BITS} bits", f"{bits:,}", "Write it as 1e300.")
    return operation(left, right)


def _leaves(values: tuple[Any, ...]) -> list[Any]:
    """Numbers and tensors in the arguments of a tool."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    leaves = [*numbers, *(t for t in tensors(values) if t.numel())]
    if not leaves:
        raise unexpected("a tool", "numbers or tensors", "none", "norm(B) is one.")
    return leaves


def _norm(*values: Any) -> float:
    return total(
        [
            norm(torch.as_tensor(v, dtype=torch.float64))
            if isinstance(v, (int, float))
            else norm(v.double() if not v.is_floating_point() else v)
            for v in _leaves(values)
        ]
    )


def _finite(*values: Any) -> bool:
    return all(bool(torch.isfinite(torch.as_tensor(v)).all()) for v in _leaves(values))


def _largest(*values: Any) -> float:
    return max(float(torch.as_tensor(v).double().abs().max()) for v in _leaves(values))


def _abs(value: Any) -> Any:
    return abs(number_or_tensor(value))


def _max(*values: Any) -> float:
    return max(float(torch.as_tensor(v).max()) for v in _leaves(values))


def _min(*values: Any) -> float:
    return min(float(torch.as_tensor(v).min()) for v in _leaves(values))


TOOLS: Mapping[str, Callable[..., Any]] = {
    "norm": _norm,
    "finite": _finite,
    "largest": _largest,
    "abs": _abs,
    "max": _max,
    "min": _min,
}
