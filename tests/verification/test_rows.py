"""`verify` of several outer losses: every row is judged, and a fault in one of them is found there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import Adam
from gimli_core.runs.eager_steps import EagerSteps
from tests.problems import tanh_loss, tanh_network

K = 3


def losses(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
    return torch.stack([tanh_loss(theta, phi, batch), 2 * theta["c"] ** 2, theta["w"].square().sum()])


def call(**more: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    made = tanh_network(Adam(), phi_opt={"lr": torch.tensor(0.1)}, **more)
    return {**made, "problem": gimli.Problem(tanh_loss, losses, Adam())}


@pytest.mark.parametrize(
    "more", [{}, {"val_weights": [0.1, 0.0, 0.5, 1.0]}, {"tasks": 2}, {"approximation": gimli.FirstOrder()}], ids=str
)
def test_every_row_is_judged(more):
    report = gimli.verify(**call(**more))
    assert report.ok, str(report)
    names = {c.name for c in report.checks}
    for q in range(K):
        assert {f"val_loss[{q}]", f'A_opt["lr"][{q}]', f'A_loss["l2"][{q}]', f'B_0["w"][{q}]'} <= names


def test_a_row_has_the_checks_of_a_call_of_its_own():
    one = {**call(), "problem": gimli.Problem(tanh_loss, lambda *a: losses(*a)[1], Adam())}
    expected = {(c.name, c.oracle): c for c in gimli.verify(**one).checks}
    found = [c for c in gimli.verify(**call()).checks if c.key[-1] == 1]
    assert len(found) == len(expected)
    for c in found:
        alike = expected[c.name.removesuffix("[1]"), c.oracle]
        assert (c.value, c.expected, c.verdict) == (alike.value, alike.expected, alike.verdict)


def test_a_claim_that_is_wrong_in_one_row():
    result = gimli.meta_gradient(**call())
    claim = result.A_opt["lr"] * torch.tensor([1.0, 1.001, 1.0])
    report = gimli.verify(**call(), claimed={"A_opt": {"lr": claim}, "B_0": result.B_0}, oracles=["autograd"])
    assert {c.name for c in report.disagreements} == {'A_opt["lr"][1]'}
    with pytest.raises(ArgumentError, match=r'A_opt\["lr"\]: expected shape \[3\]'):
        gimli.verify(**call(), claimed={"lr": 0.0})


def test_a_fault_in_one_row_is_found_where_it_is(monkeypatch):
    right = EagerSteps.sweep

    def wrong(self, inputs, point, G_j, adjoints, *, replay):
        if point.j == 2:
            adjoints[1].B = {k: 1.001 * v for k, v in adjoints[1].B.items()}
        return right(self, inputs, point, G_j, adjoints, replay=replay)

    monkeypatch.setattr(EagerSteps, "sweep", wrong)
    report = gimli.verify(**call(), oracles=["autograd"])
    assert {c.key[-1] for c in report.disagreements} == {1}
    assert report.finding is not None
    assert (report.finding.line, report.finding.step) == (11, 2)
