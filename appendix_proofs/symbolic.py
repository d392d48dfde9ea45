"""What the proofs share: symbols, one optimizer step as equations, exact tests for zero.

A `Rule` holds one step's forward equations and nothing else. Its Jacobian comes from
`sympy.diff`, never from a pullback formula. `Statements` records what was proved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import sympy as sp
from sympy import Expr, Symbol

__all__ = [
    "Rule",
    "Statements",
    "positive",
    "prove_closed_forms",
    "real",
    "run",
    "show",
    "smooth",
    "vanishes",
    "without",
]


def real(names: str) -> tuple[Symbol, ...]:
    """Symbols for real numbers of any sign."""
    return tuple(sp.symbols(names, real=True, seq=True))


def positive(names: str) -> tuple[Symbol, ...]:
    """Symbols for numbers > 0."""
    return tuple(sp.symbols(names, positive=True, seq=True))


theta, G, m, b = real("theta G m b")  # tensors of any sign; m, b are first moments
v, x, M = positive("v x M")  # second moments, running maximum
lr, eps, weight_decay, momentum = positive("lr eps weight_decay momentum")
(eps_root,) = positive("eps_root")
beta1, beta2, lr_decay = positive("beta1 beta2 lr_decay")
(dampening,) = real("dampening")
(sigma,) = real("sigma")  # the sign of G: 1, and -1 under maximize
k = Symbol("k", integer=True, nonnegative=True)  # finished steps: this is step t = k + 1
k_later = Symbol("k", integer=True, positive=True)  # the same where t > 1

# Positive symbols that make the equations rational, so that equality can be decided:
# root = the square root in the denominator, C = sqrt(1 - beta2^t).
root, C = positive("root C")


@dataclass(frozen=True, eq=False)
class Rule:
    """One optimizer step, theta', s' = opt(theta, s, phi_opt, G), as equations of scalars.

    Args:
        inputs: everything a derivative is taken of, by the name the engine gives it.
        outputs: theta' and the new state slots, under the same names.
        step: k, the number of finished steps, as a symbol or the number 0.
        where: abbreviations that closed forms may use.
        rational: a substitution for inputs under which the square root disappears.
        other: the outputs of a second branch, where two branches meet; the derivative is
            then the mean of both.
        steps: values of k at which the rule is also evaluated in numbers.
    """

    inputs: Mapping[str, Symbol]
    outputs: Mapping[str, Expr]
    step: Expr
    where: Mapping[str, Expr]
    rational: Mapping[Symbol, Expr]
    other: Mapping[str, Expr] | None = None
    steps: Sequence[int] = (0, 1, 9, 999)

    def jacobian(self) -> dict[tuple[str, str], Expr]:
        """{(output, input): d output' / d input}, by sympy."""
        branches = [self.outputs] if self.other is None else [self.outputs, self.other]
        return {
            (output, by): sum(sp.diff(branch[output], symbol) for branch in branches) / len(branches)
            for output in self.outputs
            for by, symbol in self.inputs.items()
        }


def without(rule: Rule, symbol: Symbol) -> Rule:
    """The rule at `symbol` = 0, where the shipped code leaves its term out: no longer an input."""

    def at_zero(formulas: Mapping[Any, Expr]) -> dict[Any, Expr]:
        return {name: formula.xreplace({symbol: sp.Integer(0)}) for name, formula in formulas.items()}

    return replace(
        rule,
        inputs={name: one for name, one in rule.inputs.items() if one != symbol},
        outputs=at_zero(rule.outputs),
        other=None if rule.other is None else at_zero(rule.other),
        where=at_zero(rule.where),
        rational=at_zero(rule.rational),
    )


class Statements(list[str]):
    """The statements proved so far; a statement that does not hold raises AssertionError."""

    def holds(self, statement: str, holds: object) -> None:
        """Record `statement` if `holds` is True (sympy's true included)."""
        if holds is not True and holds is not sp.true:
            raise AssertionError(f"not proved: {statement}")
        self.append(statement)

    def equal(self, statement: str, left: Any, right: Any) -> None:
        """Record `statement` if left - right is identically zero; matrices entry by entry."""
        entries = [left - right] if not isinstance(left, sp.MatrixBase) else list(left - right)
        for difference in entries:
            if not vanishes(difference):
                raise AssertionError(f"not proved: {statement}\n  left - right = {sp.simplify(difference)}")
        self.append(statement)


def vanishes(expr: Expr, rational: Mapping[Symbol, Expr] | None = None) -> bool:
    """Whether `expr` is identically zero.

    Powers are split, `rational` replaces inputs so that square roots become symbols, and
    beta2^t becomes 1 - C². What remains is rational in its symbols, and zero exactly when
    its expanded numerator is.
    """
    expr = sp.sympify(expr).xreplace(dict(rational or {}))
    expr = sp.expand_power_exp(expr)
    expr = expr.xreplace({beta2**step: (1 - C**2) / beta2 for step in (k, k_later)})
    expr = expr.replace(lambda e: e.is_Pow and not e.exp.is_integer and e.exp.is_Rational, _normal_power)
    return bool(sp.expand(sp.fraction(sp.together(expr))[0]) == 0)


def _normal_power(power: Expr) -> Expr:
    return sp.factor(sp.cancel(power.base)) ** power.exp


@cache
def smooth(name: str, *partials: Any) -> Any:
    """An undefined smooth function whose i-th partial derivative is the function `partials[i]`."""

    def fdiff(self: Any, argindex: int = 1) -> Expr:
        return partials[argindex - 1](*self.args)

    return type(name, (sp.Function,), {"fdiff": fdiff, "nargs": len(partials)})


def show(text: str) -> str:
    """A formula in plain text as it is printed: `beta1**k` as `beta1^k`."""
    return text.replace("**", "^").replace("*", "·")


def prove_closed_forms(proved: Statements, label: str, rule: Rule, closed: Mapping[str, Mapping[str, str]]) -> None:
    """Prove that sympy's derivative of each output by each input is the formula given.

    `closed[output][input]` is the formula as text, in the inputs and `rule.where`; what is
    left out is claimed to be zero.
    """
    names = {**rule.inputs, **rule.where}
    zeros = 0
    for (output, by), derivative in rule.jacobian().items():
        text = closed.get(output, {}).get(by, "0")
        claim = sp.sympify(text, locals=names)
        if not vanishes(derivative - claim, rule.rational):
            raise AssertionError(f"not proved: {label}: ∂{output}'/∂{by} = {show(text)}; sympy finds {derivative}")
        if text == "0":
            zeros += 1
        else:
            proved.append(f"{label}: ∂{output}'/∂{by} = {show(text)}")
    if zeros:
        proved.append(f"{label}: every other partial derivative is zero ({zeros})")


def run(prove: Callable[[], list[str]]) -> None:
    """Print what a proof proved, numbered."""
    for number, statement in enumerate(prove(), 1):
        print(f"{number:3}  {statement}")
