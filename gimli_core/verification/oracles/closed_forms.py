"""Oracle (c): problems whose meta-gradient has a formula.

Each case gives the arguments of `gimli.verify`, the exact values among them under `closed_form`. The formulas
are differentiated on paper and evaluated with NumPy in float64; no unroll and no autograd enters. Below, L is
the validation loss, g = dL/dtheta_J, and theta_J a function of the meta-parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gimli_core.verification.oracles import closed_forms_by_element as by_element
from gimli_core.verification.oracles import closed_forms_of_regression as of_regression

__all__ = ["CLOSED_FORMS", "Case"]


class Case(NamedTuple):
    """A bundled problem: `verify(**build())` should agree with every oracle."""

    about: str
    build: Callable[[], dict[str, Any]]


CLOSED_FORMS = {
    "quadratic": Case("quadratic under SGD: lr, curvature, centre, init", by_element.quadratic_sgd),
    "quadratic-per-step": Case("the same with a learning rate for each step", by_element.quadratic_per_step),
    "quadratic-momentum": Case("quadratic under SGD with momentum, from a warm buffer", by_element.quadratic_momentum),
    "ridge": Case(
        "ridge regression by gradient descent, on real data: lr, penalty, init", of_regression.ridge_regression
    ),
    "constant-adamw": Case(
        "a constant gradient under AdamW: the betas do not matter", by_element.constant_gradient_adamw
    ),
    "constant-adagrad": Case(
        "a constant gradient under Adagrad, initial accumulator included", by_element.constant_gradient_adagrad
    ),
    "zero-adam": Case("Adam where G = 0 exactly: slope -lr/eps", by_element.zero_gradient_adam),
    "implicit": Case(
        "J -> infinity: the implicit-function gradient of penalised logistic regression", of_regression.implicit_limit
    ),
}
