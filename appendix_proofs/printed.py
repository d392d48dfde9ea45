"""What the proofs of the printed formulas share: a row of the table, and an undefined inner loop without state.

A module `printed_*` holds the formulas of one part of the paper: `PRINTED`, one `Printed` a formula; each formula
that is an identity as a function of its terms, in `FORMULAS`; and `prove()`, of whose statements each begins with the
place of the formula that it is about. README.md shows the rows; `python -m appendix_proofs.printed` prints them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import sympy as sp
from sympy import Expr, Matrix, Symbol

from appendix_proofs import PROOFS
from appendix_proofs.augmented_state import undefined

__all__ = ["MODULES", "VERDICTS", "Chain", "Local", "Printed", "beside", "held", "table"]

MODULES = tuple(name for name in PROOFS if name.startswith("printed_"))
VERDICTS = ("definition", "holds", "holds if", "fails", "misprint")

phi, lam = sp.symbols("phi lambda", real=True)


class Printed(NamedTuple):
    """One formula of the paper and what became of it."""

    where: str
    formula: str  # in plain text notation
    verdict: str  # one of VERDICTS
    note: str = ""  # the condition, or the correction
    proof: str = ""  # the module, if it is not the one that holds the row
    begins: str = ""  # how that module's statements on it begin, if not with `where`


class Local(NamedTuple):
    """The partial derivatives of one step θ' = opt(θ, φ, G(θ, λ)), every other argument held."""

    theta: Matrix
    phi: Matrix
    O: Matrix  # noqa: E741 - the paper's letter
    H: Matrix
    M: Matrix


class Chain:
    """Steps θ_{t+1} = opt_t(θ_t, φ, G_t(θ_t, λ)) for t in `steps`, and L_val of the last; all undefined, θ in R^n."""

    def __init__(self, steps: Sequence[int], n: int = 1) -> None:
        self.start = sp.symbols(f"theta:{n}", real=True)
        self.points: list[Sequence[Expr]] = [self.start]
        self.local: list[Local] = []
        self.G: list[Matrix] = []
        for t in steps:
            theta = self.points[-1]
            G, dG = undefined([f"G{t}_{i}" for i in range(n)], (*theta, lam))
            moved, d = undefined([f"opt{t}_{i}" for i in range(n)], (*theta, phi, *G))
            self.points.append(moved)
            self.local.append(Local(d[:, :n], d[:, n : n + 1], d[:, n + 1 :], dG[:, :n], dG[:, n:]))
            self.G.append(Matrix(G))
        (self.L_val,), self.B = undefined(["L_val"], self.points[-1])

    def total(self, by: Sequence[Symbol]) -> Matrix:
        """dL_val/dby, by sympy's total derivative of the nested functions."""
        return Matrix([[sp.diff(self.L_val, symbol) for symbol in by]])


def beside(steps: int, n: int, t: int) -> Matrix:
    """∇_{θ_t} L_val, a row, at θ_t's place on the trajectory: the total derivative of the steps from t on."""
    rest, whole = Chain(range(t, steps), n), Chain(range(steps), n)
    return rest.total(rest.start).xreplace(dict(zip(rest.start, whole.points[t], strict=True)))


def held(f: Callable[..., Any], at: Sequence[Expr], stopped: Collection[int], by: Symbol) -> Expr:
    """∇_by f(at), the arguments with the numbers `stopped` under the stop-gradient operator."""
    fresh = {number: sp.Dummy() for number in stopped}
    value = f(*(fresh.get(number, each) for number, each in enumerate(at)))
    return sp.diff(value, by).xreplace({fresh[number]: at[number] for number in stopped})


def proof_of(row: Printed, module: str) -> str:
    """The file that proves a row of `module`; a definition needs none."""
    return "" if row.verdict == "definition" else f"`{row.proof or module}.py`"


def table(module: str) -> str:
    """The rows of one module's formulas, as README.md has them."""
    rows: Sequence[Printed] = importlib.import_module(f"appendix_proofs.{module}").PRINTED
    return "\n".join(
        f"| {row.where} | {row.formula} | {row.verdict}{': ' * bool(row.note)}{row.note} | {proof_of(row, module)} |"
        for row in rows
    )


if __name__ == "__main__":
    for each in MODULES:
        print(table(each), end="\n\n")
