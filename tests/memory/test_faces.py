"""Every schedule through every public entry: the step-through, `unroll` and `verify` see the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gimli_core as gimli
from gimli_core.memory import Budget, RetainGraphs, Schedule
from gimli_core.meta_parameters.marks import look_up, tensor_paths
from tests.compare import assert_identical
from tests.problems import PROBLEMS, RULES, SCHEDULES, Rule, arguments, every_problem

RULE = next(rule for rule in RULES if rule.name == "adamw-amsgrad")
every_schedule = pytest.mark.parametrize("schedule", [*SCHEDULES, "tight"], ids=str)


def row(problem: Any, schedule: Schedule | str, rule: Rule = RULE) -> dict[str, Any]:
    """The arguments of a row of the table, the schedule among them; "tight" is the least budget."""
    made = arguments(rule, problem, "cold")
    torch.manual_seed(2)
    return {**made, "memory": Budget(int(1.25 * gimli.plan(**made).least)) if schedule == "tight" else schedule}


def flat(result: gimli.MetaGradient) -> dict[Any, Any]:
    parts = {name: getattr(result, name) for name in ("val_loss", "A_opt", "A_loss", "B_0", "S_0", "theta_J")}
    return {path: look_up(parts, path) for path, _ in tensor_paths(parts)}


@every_problem
@every_schedule
def test_step_through(problem: Any, schedule: Schedule | str) -> None:
    """The walk ends with the engine's bits; each step is advanced once, and swept once, in order."""
    expected = gimli.meta_gradient(**row(problem, RetainGraphs()))
    walk = gimli.step_through(**row(problem, schedule))
    seen = [(moment.line, moment.j, moment.replay) for moment in walk]
    steps = walk.inputs.form.steps
    assert [j for line, j, replay in seen if line == 6 and not replay] == list(range(steps))
    assert [j for line, j, _ in seen if line == 14] == list(reversed(range(steps)))
    assert_identical(flat(walk.result), flat(expected))


@every_problem
@every_schedule
def test_unroll(problem: Any, schedule: Schedule | str) -> None:
    expected = gimli.meta_gradient(**row(problem, RetainGraphs()))
    made = row(problem, schedule)
    tied = {name: {k: v.requires_grad_() for k, v in made[name].items()} for name in ("phi_opt", "phi_loss")}
    loss = gimli.unroll(**made)
    loss.backward()
    assert torch.equal(loss.detach(), expected.val_loss)
    for name, gradient in (("phi_opt", expected.A_opt), ("phi_loss", expected.A_loss)):
        for k, v in tied[name].items():
            assert torch.equal(v.grad, gradient[k].to(v)), k


@every_problem
@every_schedule
def test_verify(problem: Any, schedule: Schedule | str) -> None:
    report = gimli.verify(**row(problem, schedule), oracles=["autograd"])
    report.assert_ok()


@every_schedule
def test_verify_finds_the_same_fault(schedule: Schedule | str) -> None:
    """The ablation is wrong, and the first wrong step does not depend on what was replayed."""
    reports = [
        gimli.verify(**row(PROBLEMS[1], memory), oracles=["autograd"], approximation=gimli.ThetaOnly())
        for memory in (RetainGraphs(), schedule)
    ]
    expected, found = (report.finding for report in reports)
    assert expected is not None
    assert found == expected
