"""Lessons end in agreement, and could disagree; figures draw the engine's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError, VerificationError
from gimli_core.step_through.lessons.lesson import Check, Verification, differences
from gimli_core.step_through.lessons.order import ORDER
from gimli_core.step_through.page import figures
from tests.problems import network
from tests.step_through.pages import lesson as cached


@pytest.mark.parametrize("name", gimli.lessons.LESSONS)
def test_a_lesson_agrees_with_its_oracle(name: str) -> None:
    lesson = cached(name)
    assert len(lesson.verification) >= 4
    lesson.verification.assert_ok()
    assert str(lesson.verification).count("agrees") == len(lesson.verification)
    assert all(0 < check.tolerance < 1e-6 * max(1.0, abs(check.oracle)) or "Taylor" in check.name or check.engine == 0
               for check in lesson.verification)  # fmt: skip
    assert lesson._repr_html_().startswith("<iframe")
    places = [place for part in lesson.sections for place in part["go"]]
    moments = {(m.line, m.j) for m in lesson.walk()}
    assert all((line, j) in moments for _, line, j in places)


def test_the_lessons_stand_in_their_order() -> None:
    assert tuple(gimli.lessons.LESSONS) == ORDER


def test_a_check_can_disagree() -> None:
    wrong = Verification([Check("B_0", 1.0, 1.001, "closed form", 1e-9)])
    with pytest.raises(VerificationError, match="B_0: expected to agree"):
        wrong.assert_ok()
    assert "DIFFERS" in str(wrong)
    assert not Check("nan", float("nan"), 1.0, "closed form", 1.0).agrees


def test_differences_know_their_error() -> None:
    slope, error = differences(lambda x: float(np.sin(3 * x)), 0.4, 1e-2)
    assert abs(slope - 3 * np.cos(1.2)) <= error < 1e-8


def test_the_theta_only_reading_is_wrong_where_the_lesson_says() -> None:
    arguments = gimli.lessons.momentum().arguments
    exact, ablation = (gimli.meta_gradient(**arguments, approximation=a).B_0["θ"] for a in (None, gimli.ThetaOnly()))
    assert exact[0] * ablation[0] < 0
    assert 10 < exact[1] / ablation[1] < 20


def test_autograd_says_nan_where_the_lesson_says() -> None:
    """The adam lesson's claim: differentiated as it stands, Adam's formula has no gradient at G = v = 0."""
    gate = torch.tensor(0.0, requires_grad=True)
    g = gate * 1.0
    m, v = 0.1 * g, 0.001 * g * g
    update = (m / 0.1) / ((v / 0.001).sqrt() + 0.5)
    (slope,) = torch.autograd.grad(update, gate)
    assert slope.isnan()


def test_the_exploding_lesson_explodes() -> None:
    result = gimli.meta_gradient(**gimli.lessons.exploding().arguments)
    assert 1e9 < result.B_0["θ"][0].abs() < 1e12
    assert result.train_losses.max() < 1


def test_figures_draw_the_engines_numbers() -> None:
    trace = gimli.trace(gimli.step_through(**network()))
    B, direct, curvature = figures.adjoints(trace).axes[0].lines
    expected = [float(trace.data["q"]["B"]["norm"][j]) for j in range(5)]
    assert list(B.get_ydata()) == expected
    assert len(direct.get_ydata()) == len(curvature.get_ydata()) == 4
    bars = figures.contributions(trace).axes[0].patches
    total = sum(bar.get_height() for bar in bars)
    assert total == pytest.approx(gimli.meta_gradient(**network()).A_opt["lr"].item(), rel=1e-12)
    used = figures.memory(trace).axes[0].lines[0].get_ydata()
    assert len(used) == len(trace.data["events"]["line"])
    assert max(used) > 0


def test_hyperparameters_over_outer_steps() -> None:
    figure = figures.hyperparameters([{"lr": 0.1, "$x": 1.0}, {"lr": 0.2, "$x": 2.0}])
    assert [list(axes.lines[0].get_ydata()) for axes in figure.axes] == [[0.1, 0.2], [1.0, 2.0]]
    with pytest.raises(ArgumentError, match="an empty one"):
        figures.hyperparameters([])


def test_figures_say_what_they_need(tmp_path: Path) -> None:
    bare = gimli.trace(gimli.step_through(**network(phi_opt=None, phi_loss={"decay": torch.tensor(0.0)}, steps=0)))
    with pytest.raises(ArgumentError, match="a run with meta-parameters that was swept"):
        figures.contributions(bare)
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(ArgumentError, match="a directory that can be written"):
        figures.save_all(bare, tmp_path / "taken")
