"""Every schedule returns the same bits."""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ReplayError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, StoreStates
from tests.compare import assert_identical
from tests.problems import REPLAYED_STEPS, replayed

RULES = {
    "sgd": lambda: gimli.optimizers.SGD(),
    "nesterov": lambda: gimli.optimizers.SGD(momentum=0.9, nesterov=True),
    "adagrad": lambda: gimli.optimizers.Adagrad(),
    "adam": lambda: gimli.optimizers.Adam(),
    "adamw amsgrad": lambda: gimli.optimizers.AdamW(amsgrad=True),
}
SCHEDULES = {
    "states": lambda disk: StoreStates(),
    "1": lambda disk: Checkpoint(1),
    "3": lambda disk: Checkpoint(3),
    "2 graphs 3": lambda disk: Checkpoint(2, graphs=3),
    "2 gradients": lambda disk: Checkpoint(2, gradients=True),
    "2 gradients graphs 2": lambda disk: Checkpoint(2, gradients=True, graphs=2),
    "disk": lambda disk: Checkpoint(1, disk),
    "some on disk": lambda disk: Checkpoint(2, disk, disk_snapshots=1, gradients=True),
    "budget": lambda disk: Budget("1GB"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_same_bits(rule, schedule, tmp_path):
    expected = replayed(RetainGraphs(), RULES[rule]())
    assert_identical(replayed(SCHEDULES[schedule](tmp_path), RULES[rule]()), expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_same_bits_with_losses_along_the_way(schedule, tmp_path):
    weights = [0.0, 1.0, 0.5] * 3 + [2.0]
    expected = replayed(RetainGraphs(), val_weights=weights)
    assert_identical(replayed(SCHEDULES[schedule](tmp_path), val_weights=weights), expected)


@pytest.mark.parametrize("steps", [1, 2, REPLAYED_STEPS])
def test_few_steps(steps):
    expected = replayed(RetainGraphs(), steps=steps)
    for schedule in (Checkpoint(2), Checkpoint(2, graphs=5, gradients=True), Budget("1GB")):
        assert_identical(replayed(schedule, steps=steps), expected)


def test_a_loss_that_changes_between_runs_is_caught():
    calls = []

    def loss(theta, phi, batch):
        calls.append(None)
        return (theta["w"] ** 2).sum() * (1 + len(calls) * 1e-9)

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    arguments = problem, {"w": torch.ones(2)}, lambda j: None, None
    with pytest.raises(ReplayError, match="expected the same value twice"):
        gimli.meta_gradient(*arguments, steps=4, memory=Checkpoint(2))
    with pytest.raises(ReplayError, match="at inner step j = "):
        gimli.meta_gradient(*arguments, steps=4, memory=Checkpoint(2), check=False)
