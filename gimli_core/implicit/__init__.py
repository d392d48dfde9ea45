"""Meta-gradients at a fixed point of the inner loop: the solvers of their linear system, one a file, and the report."""

from gimli_core.implicit.conjugate_gradient import CG
from gimli_core.implicit.dense import Dense
from gimli_core.implicit.implicit_gradient import implicit_gradient
from gimli_core.implicit.minres import MINRES
from gimli_core.implicit.neumann import Neumann
from gimli_core.implicit.report import ErrorBar, ImplicitGradient, ImplicitReport
from gimli_core.implicit.systems import Solver

__all__ = [
    "CG",
    "MINRES",
    "Dense",
    "ErrorBar",
    "ImplicitGradient",
    "ImplicitReport",
    "Neumann",
    "Solver",
    "implicit_gradient",
]
