"""Every rule: forwards as torch.optim, its pullback as its own step's, singular points as their limit."""

from __future__ import annotations

import pytest
import torch

from gimli_core.optimizers import check_pullback
from tests.optimizers.cases import CASES, PUBLISHED, run, run_torch, start


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_forward_results_equal_the_original_over_100_steps(case):
    ours = run(case)
    theirs = PUBLISHED[case.rule](case) if case.rule in PUBLISHED else run_torch(case)
    for k, want in theirs.items():
        assert torch.isfinite(want).all()
        # 100 steps of a few roundings each; every rule here contracts towards the minimum.
        assert ((ours[k] - want).abs() <= 1e-14 * (want.abs() + want.abs().max())).all(), k


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_pullback_is_that_of_the_step(case):
    rule = case.build()
    bound = rule.bind(
        {name: float(v) for name, v in rule.hyperparameters().items() if rule.uses(name) or name != "eps1"}
    )
    for steps in (1, 2, 12):
        check_pullback(rule, start(case), steps=steps, seed=steps).assert_ok()
        check_pullback(bound, start(case), steps=steps, seed=steps).assert_ok()  # zeros too have a derivative
