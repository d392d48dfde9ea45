"""Every optimizer on the shared problems: against autograd on the same device, in float64 and in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import gimli_core as gimli
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from tests.compare import distance, entries, largest, rounding_bounds
from tests.device.check import Check, Where
from tests.problems import PROBLEMS, RULES, STARTS, Rule, arguments, question

QUICK = ("nesterov", "adamw-amsgrad", "lamb")


def checks(where: Where) -> Iterator[Check]:
    rules = [rule for rule in RULES if not where.quick or rule.name in QUICK]
    for problem in PROBLEMS:
        for start in STARTS:
            yield summary(
                f"float64, {problem.__name__}, {start} start",
                {rule.name: in_double(where, rule, problem, start) for rule in rules},
                1e-11,
            )
        yield summary(
            f"float32, {problem.__name__}, of the bound",
            {rule.name: in_single(where, rule, problem) for rule in rules},
            1.0,
        )


def summary(name: str, errors: dict[str, float], allowed: float) -> Check:
    """The largest error of a group; a nan is never right."""
    wrong = {rule: e for rule, e in errors.items() if not e < allowed}
    worst = max(errors, key=lambda rule: (errors[rule] != errors[rule], errors[rule]))
    said = f"{len(errors)} optimizers, largest {errors[worst]:.1e} ({worst}), allowed {allowed:.0e}"
    return Check(name, not wrong, said if not wrong else f"{said}; wrong: {', '.join(wrong)}")


def in_double(where: Where, rule: Rule, problem: Any, start: str) -> float:
    """The largest relative error of any part."""
    with where.device:
        made = arguments(rule, problem, start)
        torch.manual_seed(2)
        result = gimli.meta_gradient(**made)
        asked = question(made)
        torch.manual_seed(2)
        exact = autograd_gradient(asked, asked.environment()).gradient
    parts = ("S_0", "A_opt", "A_loss", "B_0")
    floor = {part: 1e-5 * largest(exact, part) for part in parts}
    floor["S_0"] *= 100 if rule.name.startswith("lamb") else 1  # S is 0 there but for autograd's rounding
    found = entries(result, exact)
    return max(distance(found[key], value, floor[key[0]]) for key, value in exact.items())


def in_single(where: Where, rule: Rule, problem: Any) -> float:
    """The largest error as a share of what float32's rounding allows."""
    with where.device:
        made = arguments(rule, problem, "cold", torch.float32)
        torch.manual_seed(2)
        result = gimli.meta_gradient(**made)
        exact, bounds = rounding_bounds(question(arguments(rule, problem, "cold")), torch.float32)
    found = entries(result, exact)
    return max(distance(found[key], value) / bounds[key] for key, value in exact.items())
