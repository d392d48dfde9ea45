"""The engine and the oracles against formulas."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

import gimli_core as gimli
from gimli_core.memory import RetainGraphs, Schedule, StoreStates
from gimli_core.verification import Verdict, verify
from gimli_core.verification.data import regression_table
from gimli_core.verification.oracles.closed_forms import CLOSED_FORMS
from gimli_core.verification.question import flatten

ORACLES = ("autograd", "finite differences", "dense chain")


@pytest.mark.parametrize("schedule", [RetainGraphs(), StoreStates()], ids=["retain", "store"])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_engine_equals_the_formula(name: str, schedule: Schedule) -> None:
    """Directly, by the plainest comparison there is, so that the report is not its own judge."""
    made = CLOSED_FORMS[name].build()
    exact = flatten(made.pop("closed_form"), ())
    result = gimli.meta_gradient(**made, memory=schedule)
    found = flatten({part: getattr(result, part) for part in ("val_loss", "A_opt", "A_loss", "B_0", "S_0")}, ())
    for key, value in exact.items():
        # 1e-10 of the entry; 1e-15 for sums of terms of order 1 that cancel to 0 exactly
        torch.testing.assert_close(
            found[key], value.to(found[key]), rtol=1e-10, atol=2e-15, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_every_oracle_agrees(name: str) -> None:
    report = verify(**CLOSED_FORMS[name].build())
    report.assert_ok()
    closed = [c for c in report.checks if c.oracle == "closed form"]
    assert len(closed) >= 3
    assert all(c.verdict is Verdict.OK for c in closed)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_wrong_formula_is_noticed(name: str) -> None:
    """One part in 1e8, in one element of one entry."""
    made = CLOSED_FORMS[name].build()

    def spoil(entry: Any) -> Any:
        return entry + 1e-8 * np.abs(entry).max() * np.eye(len(entry))[0]

    part, key = ("B_0", "w") if "B_0" in made["closed_form"] else ("A_loss", "importance")
    made["closed_form"][part][key] = torch.from_numpy(spoil(made["closed_form"][part][key].numpy()))
    wrong = [c for c in verify(**made, oracles=()).checks if c.verdict is Verdict.DISAGREES]
    assert [(c.oracle, c.key) for c in wrong] == [("closed form", (part, key))]


def test_closed_forms_hold_on_the_computed_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the cases use a computed table of the same size."""
    real = regression_table()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    computed = regression_table()
    assert [a.shape for a in computed] == [a.shape for a in real]
    assert not np.array_equal(computed[0], real[0])
    for name in ("ridge", "implicit"):
        verify(**CLOSED_FORMS[name].build(), oracles=()).assert_ok()


def test_implicit_gradient_is_the_limit() -> None:
    """The distance to it falls with J as the contraction of the iteration says, and is not small for a short loop."""
    made = CLOSED_FORMS["implicit"].build()
    limit = made.pop("closed_form")["A_loss"]["log_alpha"]
    distances = []
    for steps in (2, 6, 10):
        result = gimli.meta_gradient(**{**made, "steps": steps})
        distances.append(abs(float(result.A_loss["log_alpha"]) - limit))
    assert distances[0] > 1e-3
    # |1 - lr H| <= 0.4 for this table: 0.4^4 = 0.026 for four steps more, times the ratio of the sums' lengths
    assert distances[1] < 0.026 * 3 * distances[0]
    assert distances[2] < 0.026 * (10 / 6) * distances[1]


def test_the_zero_gradient_slope() -> None:
    """dw_1/dG = -lr / eps, where autograd has nan."""
    report = verify(**CLOSED_FORMS["zero-adam"].build())
    verdicts = {c.oracle: c.verdict for c in report.checks if c.key == ("B_0", "w")}
    assert verdicts == {
        "autograd": Verdict.UNDEFINED,
        "autograd, sqrt'(0) = 0": Verdict.OK,
        "finite differences": Verdict.OK,
        "dense chain": Verdict.OK,
        "closed form": Verdict.OK,
    }
