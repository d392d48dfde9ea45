"""Exact numbers that torch functions take, so that shipped code can be run on symbols."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import sympy as sp
import torch

__all__ = ["Exact"]


class Exact:
    """A sympy expression that torch functions take for a tensor of one element.

    Floats are taken at their exact binary value. A comparison must be decided by the
    assumptions on the symbols; one that is not raises ValueError. Of torch's functions, and
    methods of the same names, those in FUNCTIONS are known; a trailing underscore works in place.

    >>> import sympy, torch
    >>> x = Exact(sympy.Symbol("x", positive=True))
    >>> torch.addcmul(x, x, x).expr, torch.where(x > 0, 0.5 / x, 0.0).expr
    (x**2 + x, 1/(2*x))
    """

    shape = (1,)
    ndim = 1
    dtype = torch.float64

    def __init__(self, value: Any) -> None:
        value = value.expr if isinstance(value, Exact) else value
        self.expr: Any = sp.Rational(value) if isinstance(value, float) else sp.sympify(value)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Exact:
        return Exact(_known(func.__name__)(*args, **(kwargs or {})))

    def __getattr__(self, name: str) -> Callable[..., Exact]:
        if name.startswith("__"):
            raise AttributeError(name)
        function = _known(name.removesuffix("_"))
        return partial(self._become, function) if name.endswith("_") else partial(function, self)

    def _become(self, function: Callable[..., Exact], *args: Any, **kwargs: Any) -> Exact:
        self.expr = function(self, *args, **kwargs).expr
        return self

    def __gt__(self, other: Any) -> Exact:
        return Exact((self - other).sign().expr > 0)

    def __neg__(self) -> Exact:
        return Exact(-self.expr)

    def __add__(self, other: Any) -> Exact:
        return Exact(self.expr + Exact(other).expr)

    def __sub__(self, other: Any) -> Exact:
        return Exact(self.expr - Exact(other).expr)

    def __rsub__(self, other: Any) -> Exact:
        return Exact(Exact(other).expr - self.expr)

    def __mul__(self, other: Any) -> Exact:
        return Exact(self.expr * Exact(other).expr)

    def __truediv__(self, other: Any) -> Exact:
        return Exact(self.expr / Exact(other).expr)

    def __rtruediv__(self, other: Any) -> Exact:
        return Exact(Exact(other).expr / self.expr)

    def __pow__(self, other: Any) -> Exact:
        return Exact(self.expr ** Exact(other).expr)

    __radd__, __rmul__ = __add__, __mul__


def _known(name: str) -> Callable[..., Exact]:
    if name not in FUNCTIONS:
        raise NotImplementedError(f"Exact: torch's {name} is not among FUNCTIONS. Say there what it computes.")
    return FUNCTIONS[name]


def _normal(a: Exact) -> Any:
    return sp.factor(sp.cancel(a.expr))


def _sign(a: Exact) -> Exact:
    expr = _normal(a)
    for known, value in ((expr.is_zero, 0), (expr.is_positive, 1), (expr.is_negative, -1)):
        if known:
            return Exact(value)
    raise ValueError(f"the sign of {expr} is not decided")


def _nan_to_num(a: Exact, *, nan: float, posinf: float) -> Exact:
    return Exact(posinf) if a.expr in (sp.oo, sp.zoo) else a  # a positive number over 0 is sympy's zoo


def _to(a: Exact, *_: Any) -> Exact:
    return Exact(int(bool(a.expr))) if a.expr in (sp.true, sp.false) else a


FUNCTIONS: dict[str, Callable[..., Exact]] = {
    "add": operator.add,
    "addcdiv": lambda a, b, c, value=1: a + b / c * value,
    "addcmul": lambda a, b, c, value=1: a + b * c * value,
    "div": operator.truediv,
    "lerp": lambda a, b, weight: a + weight * (b - a),
    "maximum": lambda a, b: a if _sign(a - b).expr >= 0 else b,
    "mul": operator.mul,
    "nan_to_num": _nan_to_num,
    "neg": operator.neg,
    "ones_like": lambda a: Exact(1),
    "reciprocal": lambda a: 1 / a,
    "reshape": lambda a, shape: a,
    "sign": _sign,
    "sqrt": lambda a: Exact(sp.sqrt(_normal(a))),
    "sub": operator.sub,
    "to": _to,
    "where": lambda condition, yes, no: Exact(yes if condition.expr == sp.true else no),
}
