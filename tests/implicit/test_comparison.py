"""Ways to a meta-gradient side by side; and iMAML's synthetic problem, whose error falls as its paper shows."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.implicit import CG, Dense
from gimli_core.optimizers import SGD
from tests.benchmarks.imaml import Synthetic, synthetic
from tests.compare import distance
from tests.implicit.problems import fit, ridge, ridge_loss

STEPS = (4, 8, 16, 32, 48)


def compared(made: Synthetic, **options: Any) -> gimli.Comparison:
    arguments = {k: v for k, v in made.arguments.items() if k != "phi_loss"}
    closed_form = {"B_0": {"w": made.B_0}}
    return gimli.compare(**arguments, closed_form=closed_form, **{"steps": STEPS, **options})


def test_on_imaml_s_synthetic_problem_the_error_falls_as_in_its_second_figure() -> None:
    """Both come to the exact gradient as J grows; the implicit one is nearer on the way, and stops at the error of a
    solve that is cut short."""
    made = synthetic(tasks=3, n=10, strength=0.5, lr=0.6)
    found = compared(made, solver=CG(rtol=1e-10))
    unrolled, implicit = ([row.error for row in found.of(way)] for way in ("unrolled", "implicit"))
    for errors in (unrolled, implicit):
        assert all(later < earlier for earlier, later in pairwise(errors))
    assert all(i < u for i, u in zip(implicit, unrolled, strict=True))
    assert unrolled[-1] < 1e-6
    assert implicit[-1] < 1e-7
    short = [row.error for row in compared(made, solver=CG(rtol=0.05), steps=(4, 40, 48)).of("implicit")]
    assert short[0] < unrolled[0]
    assert 1e-4 < short[-1] == pytest.approx(short[-2], rel=1e-2)  # the terminal error of few steps


def test_an_implicit_gradient_knows_how_far_it_is_off() -> None:
    for row in compared(synthetic(tasks=3, n=10, strength=0.5, lr=0.6), solver=CG(rtol=1e-10)).of("implicit"):
        assert row.estimate is not None
        assert row.error / 3 <= row.estimate + 1e-10 <= 3 * row.error + 1e-9


def test_what_leaves_something_out_stays_off() -> None:
    found = compared(synthetic(tasks=2, n=6), truncate=3, steps=(3, 30))
    for way in ("first order", "truncated"):
        assert found.of(way)[-1].error > 0.05
    assert "errors relative to the closed form" in str(found)


def test_every_number_is_that_of_the_function_itself() -> None:
    made = ridge(n=4, spread=0.3, rule=SGD(lr=0.3))
    arguments = {k: v for k, v in made.arguments.items() if k != "theta_star"}
    theta_0 = {"w": torch.zeros(4)}
    call = {**arguments, "theta_0": theta_0}
    found = gimli.compare(**call, steps=(2, 60), solver=Dense(), truncate=2)
    batch = call.pop("train_batch")
    exact = gimli.meta_gradient(**call, train_batches=lambda j: batch, steps=60)
    assert found.reference == "the unrolled gradient of 60 steps"
    assert found.of("unrolled")[1].error == 0.0
    assert found.of("unrolled")[1].length == pytest.approx(
        math.sqrt(sum(v.square().sum().item() for v in (exact.A_loss["log_l2"], exact.B_0["w"]))), rel=1e-12
    )
    closed = gimli.implicit_gradient(
        arguments["problem"], exact.theta_J, batch, arguments["val_batch"], phi_loss=arguments["phi_loss"]
    )
    assert found.of("implicit")[1].length == pytest.approx(closed.A_loss["log_l2"].norm().item(), rel=1e-5)
    assert found.of("implicit")[1].error < 1e-6
    assert found.of("truncated")[0].error == pytest.approx(found.of("unrolled")[0].error)  # k = J
    assert distance(closed.A_loss["log_l2"], made.A) < 1e-5


def concave_at_first(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return (phi["c"] * theta["w"].square() + theta["w"].pow(4) / 4).sum()


def test_what_is_refused_at_one_J_stands_in_the_table() -> None:
    """A double well: between its minima the Hessian is negative, and there is no implicit gradient."""
    problem = gimli.Problem(concave_at_first, lambda theta, phi, batch: theta["w"].sum(), SGD(lr=0.1))
    found = gimli.compare(
        problem, {"w": torch.full((2,), 0.1)}, None, None, steps=(1, 80), phi_loss={"c": torch.tensor(-0.5)}
    )
    first, last = found.of("implicit")
    assert "NegativeCurvatureError: train_loss at theta_star: expected a positive definite Hessian" in first.why
    assert math.isnan(first.error)
    assert last.why == ""
    assert last.error < 1e-4
    assert "NegativeCurvatureError" in str(found)


def test_as_a_rich_table_and_as_a_picture(tmp_path: Path) -> None:
    console = pytest.importorskip("rich.console")
    pytest.importorskip("matplotlib")
    found = compared(synthetic(tasks=2, n=4), steps=(3, 9))
    shown = console.Console(width=200, record=True, file=(tmp_path / "shown").open("w"))
    shown.print(found)
    text = shown.export_text()
    shown.file.close()
    assert all(cell in text for row in found.rows() for cell in row)
    found.plot(tmp_path / "comparison.svg")
    drawn = (tmp_path / "comparison.svg").read_text()
    assert "<svg" in drawn
    found.plot(tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match=r"path: expected the name of a picture; got the ending '\.txt'"):
        found.plot(tmp_path / "comparison.txt")
    with pytest.raises(ArgumentError, match="path"):
        found.plot(tmp_path / "absent" / "comparison.png")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": ()}, r"steps: expected rising whole numbers of inner steps, from 1 on; got \(\)"),
        ({"steps": (3, 2)}, r"steps: expected rising .* got \(3, 2\)"),
        ({"steps": (0, 2)}, r"steps: expected rising .* got \(0, 2\)"),
        ({"steps": 5}, r"steps: expected rising .* got 5"),
        ({"closed_form": {"B_0": {"v": torch.ones(6)}}}, r"closed_form: expected entries among .* got \('B_0', 'v'\)"),
        ({"closed_form": {}}, r"closed_form: expected entries among .* got none"),
        ({"solver": "cg"}, r"solver: expected one of gimli\.implicit"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    made = ridge().arguments
    arguments = {k: v for k, v in made.items() if k != "theta_star"}
    arguments |= {
        "theta_0": {"w": torch.zeros(6)},
        "problem": gimli.Problem(ridge_loss, fit, SGD(lr=0.1)),
        "steps": (1, 2),
    }
    with pytest.raises(ArgumentError, match=message):
        gimli.compare(**{**arguments, **changed})
