"""Rules that couple the elements of a tensor: the shipped pullback against sympy's gradient of a small instance.

For random adjoints B', S' of the outputs, L = <B', theta'> + <S', s'> is one sympy expression in every element of every
input. Its gradient, sympy's derivative of each subexpression and the chain rule, evaluated with 40 digits at random
float64 points, is what the shipped pullback must return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import sympy as sp
import torch

from appendix_proofs.symbolic import Statements

__all__ = ["check_coupled", "matrix"]

POINTS = 5
TOLERANCE = 1e-12  # of the largest entry: some hundred roundings of 1.1e-16, and room for conditioning


def matrix(name: str, rows: int, columns: int) -> sp.Matrix:
    """A matrix of real symbols."""
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"{name}_{i}{j}", real=True))


def gradient_of(L: sp.Expr, symbols: Sequence[sp.Symbol], by: Sequence[sp.Symbol]) -> Callable[..., list[Any]]:
    """dL/ds for each s in `by`, as a function of `symbols`.

    L is taken apart into subexpressions that each occur once, and these are gone through in reverse: to differentiate
    all of L by each symbol took sympy half a minute.
    """
    parts, (whole,) = sp.cse(L)
    adjoints: dict[sp.Symbol, list[sp.Expr]] = {s: [] for s in by}
    lines = []
    for name, part in [(None, whole), *reversed(parts)]:
        seed = sp.Integer(1)
        if name is not None:
            seed = sp.Symbol(f"bar_of_{name}", real=True)
            lines.append((seed, sp.Add(*adjoints.get(name, []))))
        for s in part.free_symbols:
            adjoints.setdefault(s, []).append(seed * sp.diff(part, s))
    exprs = [sp.Add(*adjoints[s]) for s in by]
    return sp.lambdify(symbols, exprs, modules="mpmath", cse=lambda _: ([*parts, *lines], exprs))


def check_coupled(
    proved: Statements,
    label: str,
    optimizer: Any,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, sp.Matrix],
    values: Mapping[str, float],
    step: int = 2,
) -> None:
    """Compare V, B, S and A with the gradient of L.

    Args:
        inputs: "theta", "G" and slots as matrices of symbols, hyperparameters as symbols.
        outputs: theta' and the slots, as matrices of expressions in them, at t = `step` + 1.
        values: the hyperparameters' numbers.
    """
    generator = torch.Generator().manual_seed(0)
    slots = [name for name in outputs if name != "theta"]
    adjoint = {name: matrix(f"bar_{name}", *shape.shape) for name, shape in outputs.items()}
    L = sum(sum(bar.multiply_elementwise(outputs[name])) for name, bar in adjoint.items())
    symbols = [
        s
        for value in (*inputs.values(), *adjoint.values())
        for s in (value if isinstance(value, sp.MatrixBase) else [value])
    ]
    flat = [
        (name, s) for name, value in inputs.items() for s in (value if isinstance(value, sp.MatrixBase) else [value])
    ]
    gradient = gradient_of(L, symbols, [s for _, s in flat])
    worst = 0.0
    for _ in range(POINTS):
        at: dict[str, Any] = {}
        for name, value in inputs.items():
            if isinstance(value, sp.MatrixBase):
                at[name] = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                if name in slots:
                    at[name] = at[name] ** 2 + 0.1 if name.endswith(("sq", "var")) else at[name]
        bars = {name: torch.randn(bar.shape, generator=generator, dtype=torch.float64) for name, bar in adjoint.items()}
        numbers = [values[n] if n in values else at[n].flatten().tolist() for n in inputs]
        numbers = [x for n in numbers for x in (n if isinstance(n, list) else [n])] + [
            x for b in bars.values() for x in b.flatten().tolist()
        ]
        with mpmath.workdps(40):
            exact = [float(x) for x in gradient(*map(mpmath.mpf, numbers))]
        state = {"step": torch.tensor(float(step), dtype=torch.float64), **{s: {"w": at[s]} for s in slots}}
        for slot in optimizer.slots():
            state.setdefault(slot, {})
        hyper = {
            "w": {
                n: torch.tensor(values.get(n, h), dtype=torch.float64) for n, h in optimizer.hyperparameters().items()
            }
        }
        S = {slot: {"w": bars[slot]} if slot in slots else {} for slot in optimizer.slots()}
        pulled = optimizer.pullback(
            {"w": at["theta"]}, state, {"w": at["G"]}, hyper, {"w": bars["theta"]}, S, tuple(values)
        )
        came = {"theta": pulled.B["w"], "G": pulled.V["w"], **{s: pulled.S[s]["w"] for s in slots}, **pulled.A["w"]}
        found = [x for name in inputs for x in came[name].flatten().tolist()]
        size = max(map(abs, exact))
        for (name, _), a, b in zip(flat, found, exact, strict=True):
            if not abs(a - b) <= TOLERANCE * size:
                raise AssertionError(f"{label}: the shipped adjoint of {name} is {a!r}, sympy's {b!r}")
            worst = max(worst, abs(a - b) / size)
    proved.append(
        f"{label}: the shipped pullback of any adjoints, {len(flat)} entries at {POINTS} points, off by <= {worst:.0e}"
    )
