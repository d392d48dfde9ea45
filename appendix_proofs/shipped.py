"""The shipped steps and pullbacks, checked against the equations of a `Rule`.

Twice, in ways that fail differently:

- on symbols: `Exact` numbers stand in for tensors, so the shipped code itself computes with
  sympy expressions, and its Jacobian equals sympy's for every value at once;
- in float64: the shipped Jacobians at a set of points against sympy's, evaluated with 50
  digits at the same floating-point numbers.

The float64 bound comes from arithmetic. A computation of a few dozen roundings, each no
worse than a relative change u = 2^-53 of an input or of the result, is off by at most about

    ROUNDINGS · u · (Σ_n |J_n| + Σ_i |x_i ∂J/∂x_i|),

where J = Σ_n J_n has the terms that the product rule gives, and the x_i are the inputs and each
power beta^t, which is rounded before it is subtracted from 1. The bracket over |J| is the
condition of the entry J: large where J is a difference of nearly equal numbers, and where
1 - beta^t is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import mpmath
import sympy as sp
import torch
from sympy import Expr, Symbol

from appendix_proofs.exact import Exact
from appendix_proofs.symbolic import Rule, Statements, k, vanishes
from gimli_core.optimizers import Optimizer

__all__ = ["Case", "Reference", "check_float64", "check_shipped", "check_symbols", "pull_symbols"]

UNIT = 2.0**-53
ROUNDINGS = 8
WELL = 100  # the condition below which an entry's relative error is reported by itself
DIGITS = 50

# One column a point: ordinary and extreme values, zeros among them, never g = 0 and v = 0 together.
POINTS = {
    "theta": (0.75, -1.25, 2.0, -0.3, 0.0, 1e-3, 1.0),
    "G": (0.5, -0.25, 1.5, -2.0, 1e-4, 3.0, 0.0),
    "momentum_buffer": (0.1, -0.7, 0.0, 0.4, -0.2, 1.1, 0.3),
    "exp_avg": (0.1, -0.7, 0.0, 0.4, -0.2, 1.1, 0.3),
    "exp_avg_sq": (0.25, 0.01, 2.0, 1.0, 1e-6, 0.0, 0.5),
    "sum": (0.25, 0.01, 2.0, 1.0, 1e-6, 0.0, 0.5),
    "lr": (0.1, 1e-3, 0.5, 0.05, 1.0, 0.01, 0.2),
    "momentum": (0.9, 0.5, 0.0, 0.95, 0.99, 0.3, 0.8),
    "dampening": (0.1, 0.5, 0.0, -0.2, 1.0, 0.05, 0.3),
    "weight_decay": (0.01, 0.1, 0.3, 0.0, 0.001, 0.05, 0.0),
    "beta1": (0.9, 0.5, 0.0, 0.95, 0.99, 0.3, 0.8),
    "beta2": (0.999, 0.0, 0.5, 0.9, 0.95, 0.999, 0.99),
    "eps": (1e-8, 1e-3, 0.1, 1e-8, 1e-10, 0.0, 1e-6),
    "eps_root": (1e-6, 1e-3, 0.1, 1e-8, 1e-10, 1e-2, 1e-4),
    "lr_decay": (0.1, 0.0, 1.0, 0.01, 0.3, 0.5, 2.0),
    "exp_inf": (0.25, 2.0, 0.7, 3.0, 1e-3, 0.5, 1.0),
    "square_avg": (2.5, 3.0, 4.0, 1.0, 0.5, 6.0, 2.0),
    "grad_avg": (0.1, -0.7, 0.0, 0.4, -0.2, 1.1, 0.3),
    "acc_delta": (0.25, 0.01, 2.0, 1.0, 1e-6, 0.3, 0.5),
    "mu_product": (0.9, 0.5, 0.3, 0.7, 0.1, 0.99, 0.2),
    "momentum_decay": (0.004, 0.1, 0.0, 1.0, 0.5, 0.01, 0.3),
    "rho": (0.9, 0.5, 0.0, 0.99, 0.3, 0.8, 0.95),
    "alpha": (0.99, 0.5, 0.2, 0.9, 0.75, 0.8, 0.3),
    "eta": (0.1, 1e-3, 0.5, 0.05, 1.0, 0.01, 0.2),
    "mu": (1.0, 0.5, 0.25, 1.0, 0.1, 0.9, 0.3),
    "ax": (0.7, -1.0, 0.0, 0.4, 0.2, 1.1, 0.3),
    "lambd": (1e-4, 0.1, 0.5, 0.0, 0.01, 1.0, 0.2),
    "t0": (-3.5, -0.5, -1.5, -20.0, -2.5, -7.0, -100.0),
    "prev": (0.5, 0.25, 1.0, -1.0, 2.0, -3.0, 0.4),
    "step_size": (0.1, 0.2, 0.3, 0.05, 0.5, 0.4, 0.25),
    "etaminus": (0.5, 0.3, 0.9, 0.1, 0.4, 0.6, 0.7),
    "etaplus": (1.2, 1.5, 1.1, 2.0, 1.3, 1.05, 1.9),
    "step_size_min": (1e-6, 0.1, 0.0, 0.01, 0.2, 0.3, 0.05),
    "step_size_max": (50.0, 0.7, 0.32, 1.0, 0.6, 2.0, 0.9),
}


def _exact_inputs(optimizer: Optimizer, rule: Rule, at: Mapping[Symbol, Expr]) -> tuple[Any, Any, Any, Any]:
    """(theta, state, G, hyper) of one element, as the optimizer takes them."""
    value = {name: Exact(symbol.xreplace(dict(at))) for name, symbol in rule.inputs.items()}
    state = {"step": Exact(rule.step)} | {slot: {"w": value[slot]} for slot in rule.outputs if slot != "theta"}
    hyper = {name: value.get(name, Exact(number)) for name, number in optimizer.hyperparameters().items()}
    return {"w": value["theta"]}, state, {"w": value["G"]}, {"w": hyper}


def pull_symbols(optimizer: Any, rule: Rule, at: Mapping[Symbol, Expr], adjoint: Mapping[str, Expr]) -> dict[str, Expr]:
    """The shipped pullback on symbols: {input: Σ_output adjoint·d output'/d input}; an adjoint left out is 0."""
    S = {output: {"w": Exact(adjoint.get(output, 0))} for output in rule.outputs}
    B = S.pop("theta")
    pulled = optimizer.pullback(*_exact_inputs(optimizer, rule, at), B, S, optimizer.continuous())
    found = {"G": pulled.V, "theta": pulled.B} | pulled.S | {n: {"w": a} for n, a in pulled.A["w"].items()}
    return {name: found[name]["w"].expr for name in rule.inputs}


class Case(NamedTuple):
    """A shipped optimizer, the rule it must be, and where the two are compared.

    `at` fixes inputs that this set of options leaves out; `points` replaces some of POINTS.
    """

    label: str
    optimizer: Optimizer
    rule: Rule
    at: Mapping[Symbol, int] = {}
    points: Mapping[str, Sequence[float]] = {}

    def references(self) -> list[Reference]:
        """The rule with 50 digits at every point, in the first step and later ones."""
        held = {name: self.at[symbol] for name, symbol in self.rule.inputs.items() if symbol in self.at}
        points = {**self.points, **{name: [float(value)] * len(POINTS[name]) for name, value in held.items()}}
        return [Reference.of(self.rule, step, **points) for step in self.rule.steps]


def check_shipped(proved: Statements, cases: Iterable[Case]) -> None:
    """Check the shipped step and pullback of every case, on symbols and in float64."""
    for case in cases:
        check_symbols(proved, case)
        check_float64(proved, case.label, case.optimizer, case.references())


@cache
def _compiled(rule: Rule) -> tuple[list[tuple[str, str | None]], Any, Any, Any]:
    """Keys (output, input), with input None for the output itself, and functions of the inputs and k:

    the powers beta^k, which are further arguments of the other two; the values of the keys; the sum
    of the absolute terms of each.
    """
    formulas: dict[tuple[str, str | None], Expr] = {(o, None): f for o, f in rule.outputs.items()}
    formulas = {key: sp.expand_power_exp(f) for key, f in (formulas | rule.jacobian()).items()}
    powers = sorted({p for f in formulas.values() for p in f.atoms(sp.Pow) if p.exp.free_symbols}, key=str)
    rounded = {power: sp.Dummy() for power in powers}
    step = rule.step if isinstance(rule.step, Symbol) else k
    symbols = [*rule.inputs.values(), step]
    values = [f.xreplace(rounded) for f in formulas.values()]
    terms = [sp.Add(*map(sp.Abs, sp.Add.make_args(f))) for f in values]
    return (
        list(formulas),
        sp.lambdify(symbols, powers, modules="mpmath"),
        sp.lambdify([*symbols, *rounded.values()], values, modules="mpmath", cse=True),
        sp.lambdify([*symbols, *rounded.values()], terms, modules="mpmath", cse=True),
    )


class Reference(NamedTuple):
    """A rule's outputs and Jacobian at `points`, with 50 digits, and how far rounding may move them.

    `points[input]` holds one float64 number a point; `step` is k.
    """

    rule: Rule
    points: Mapping[str, Sequence[float]]
    step: int
    value: Mapping[tuple[str, str | None], Sequence[Any]]
    scale: Mapping[tuple[str, str | None], Sequence[Any]]

    @classmethod
    def of(cls, rule: Rule, step: int, **points: Sequence[float]) -> Reference:
        """Evaluate `rule` at POINTS, some replaced."""
        keys, powers, values, terms = _compiled(rule)
        points = {**POINTS, **points}
        columns = []
        with mpmath.workdps(DIGITS):
            nudge = mpmath.mpf(10) ** (-DIGITS // 2)
            for point in zip(*(points[name] for name in rule.inputs), strict=True):
                exact = [*map(mpmath.mpf, point), mpmath.mpf(step)]
                exact += powers(*exact)
                here, scale = values(*exact), terms(*exact)
                for i, number in enumerate(exact):
                    if i == len(point):
                        continue  # k is not rounded
                    moved = values(*exact[:i], number * (1 + nudge), *exact[i + 1 :])
                    scale = [s + abs(new - old) / nudge for s, new, old in zip(scale, moved, here, strict=True)]
                columns.append((here, scale))
        by_key = [zip(*column, strict=True) for column in zip(*columns, strict=True)]
        value, scale = (dict(zip(keys, column, strict=True)) for column in by_key)
        return cls(rule, points, step, value, scale)


def check_symbols(proved: Statements, case: Case) -> None:
    """Prove that the shipped step and pullback are the rule and its Jacobian, for all values."""
    label, optimizer, rule = case.label, case.optimizer, case.rule
    at: dict[Symbol, Expr] = {symbol: sp.Integer(value) for symbol, value in case.at.items()}
    at |= {symbol: value.xreplace(at) for symbol, value in rule.rational.items()}
    new_theta, state = optimizer.step(*_exact_inputs(optimizer, rule, at))
    stepped = {"theta": new_theta} | {slot: state[slot] for slot in rule.outputs if slot != "theta"}
    for output, formula in rule.outputs.items():
        if not vanishes(formula.xreplace(at) - stepped[output]["w"].expr):
            raise AssertionError(f"{label}: the shipped step computes another {output}'")
    jacobian = rule.jacobian()
    adjoint = {output: Symbol(f"adjoint_of_{output}") for output in rule.outputs}
    for by, shipped in pull_symbols(optimizer, rule, at, adjoint).items():
        exact = sum(bar * jacobian[output, by].xreplace(at) for output, bar in adjoint.items())
        if not vanishes(exact - shipped):
            raise AssertionError(f"{label}: the shipped adjoint of {by} is {sp.factor(shipped)}")
    values = "for every positive second moment" if rule.rational else "for all values"
    proved.append(
        f"{label}: the shipped step, and its pullback of any adjoints ({len(jacobian)} derivatives), {values}"
    )


def check_float64(proved: Statements, label: str, optimizer: Any, references: Iterable[Reference]) -> None:
    """Check that the shipped float64 step and Jacobians agree with each reference, to rounding."""
    count, roundings, relative = 0, 0.0, 0.0
    for reference in references:
        points = {name: torch.tensor(p, dtype=torch.float64) for name, p in reference.points.items()}
        theta, G = {"w": points["theta"]}, {"w": points["G"]}
        slots = [slot for slot in reference.rule.outputs if slot != "theta"]
        state: dict[str, Any] = {"step": torch.tensor(reference.step, dtype=torch.float64)}
        state |= {slot: {"w": points[slot]} for slot in slots}
        plain = {n: torch.tensor(h, dtype=torch.float64) for n, h in optimizer.hyperparameters().items()}
        hyper = {"w": {n: points.get(n, h) for n, h in plain.items()}}
        jacobians = optimizer.jacobians(theta, state, G, hyper)
        new_theta, new_state = optimizer.step(theta, state, G, hyper)
        for (output, by), exact in reference.value.items():
            stepped = new_theta if output == "theta" else new_state[output]
            came = stepped["w"] if by is None else jacobians[output][by]["w"]
            for i, (shipped, want) in enumerate(zip(came.expand(len(exact)).tolist(), exact, strict=True)):
                scale = reference.scale[output, by][i]
                error = abs(mpmath.mpf(shipped) - want)
                if not error <= ROUNDINGS * UNIT * scale:
                    what = f"{output}'" if by is None else f"∂{output}'/∂{by}"
                    raise AssertionError(
                        f"{label}: {what} at t = {reference.step + 1}, point {i}: shipped {shipped!r}, "
                        f"exact {mpmath.nstr(want, 17)}, error {mpmath.nstr(error, 3)} > "
                        f"{mpmath.nstr(ROUNDINGS * UNIT * scale, 3)}"
                    )
                count += 1
                if error:
                    roundings = max(roundings, float(error / (UNIT * scale)))
                    relative = max(relative, float(error / abs(want)) if scale <= WELL * abs(want) else 0.0)
    proved.append(
        f"{label}: {count} numbers in float64, off by <= {roundings:.1f}·u·condition; "
        f"relative error <= {relative:.0e} at conditions <= {WELL}"
    )
