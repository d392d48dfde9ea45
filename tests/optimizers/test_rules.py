"""Every rule: forwards as torch.optim, its pullback as its own step's, singular points as their limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gimli_core.optimizers import check_pullback
from gimli_core.transforms.one_vector import Spread
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


READINGS: dict[str, Any] = {
    "get": lambda d: d.get("w"), "get nothing": lambda d: d.get("x", 1), "print": repr, "copy": lambda d: d.copy(),
    "or": lambda d: d | {"x": 1}, "ror": lambda d: {"x": 1} | d, "items": lambda d: list(d.items()),
    "values": lambda d: list(d.values()), "reversed": lambda d: list(reversed(d)), "stars": lambda d: {**d},
    "dict": dict, "in": lambda d: ("w" in d, "x" in d), "len": lambda d: (len(d), bool(d)), "entry": lambda d: d["b"],
}  # fmt: skip


@pytest.mark.parametrize("reading", READINGS)
def test_views_of_one_vector_read_as_a_dict(reading: str) -> None:
    plain = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    spread = Spread(torch.tensor([1.0, 2.0, 3.0]), {"w": (1, 2), "b": (1,)}, [2, 1])
    assert repr(READINGS[reading](spread)) == repr(READINGS[reading](plain))


def test_views_of_one_vector_compare_and_refuse_to_be_set() -> None:
    spread = Spread(torch.tensor([1.0]), {"w": (1,)}, [1])
    assert spread != {}
    assert spread == {"w": torch.tensor([1.0])}
    with pytest.raises(TypeError, match="make a new dict"):
        spread["w"] = torch.zeros(1)
