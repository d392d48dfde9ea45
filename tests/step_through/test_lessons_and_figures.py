"""Lessons end in agreement, and could disagree; figures draw the engine's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import gimli_core as gimli
from gimli_core.errors import ArgumentError, VerificationError
from gimli_core.step_through.lessons.lesson import Check, Verification, differences
from gimli_core.step_through.lessons.order import ORDER
from gimli_core.step_through.moment import Moment
from gimli_core.step_through.page import figures
from gimli_core.step_through.page.worst_steps import worst_steps
from tests.problems import network
from tests.step_through.pages import lesson as cached


@pytest.mark.parametrize("name", gimli.lessons.LESSONS)
def test_a_lesson_agrees_with_its_oracle(name: str) -> None:
    lesson = cached(name)
    assert len(lesson.verification) >= 4
    lesson.verification.assert_ok()
    assert str(lesson.verification).count("agrees") == len(lesson.verification)
    assert all(
        0 < check.tolerance < 1e-6 * max(1.0, abs(check.oracle)) or "Taylor" in check.name or check.engine == 0
        for check in lesson.verification
    )
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


def test_a_figure_goes_where_it_is_asked_to_go(tmp_path: Path) -> None:
    trace = cached("momentum").page()
    figure = Figure(figsize=(figures.PAGE, 2))
    axes = figure.subplots(1, 3)
    assert {draw(trace, ax=ax) for draw, ax in zip(DRAWN, axes, strict=True)} == {figure}
    assert figures.adjoints(trace, width=figures.COLUMN).get_figwidth() == 3.25
    written = figures.save_all(trace, tmp_path)
    assert all(path.read_bytes().startswith(b"%PDF") for path in written if path.suffix == ".pdf")
    assert {path.stem for path in written if path.suffix == ".pdf"} == {path.stem for path in written}


DRAWN = (figures.adjoints, figures.growth, figures.tensor_map)


def test_signed_terms_are_stacked_on_their_side_of_zero() -> None:
    trace = cached("momentum").page()
    leaves = [leaf for leaf in trace.data["A"] if any(leaf["inc"])]
    figure = Figure()
    ax = figure.subplots()
    assert figures.contributions(trace, stacked=True, ax=ax) is figure
    J = trace.data["steps"]
    for j in range(J):
        terms = [leaf["inc"][j]["v"][0] for leaf in leaves]
        bars = [ax.patches[n * J + j] for n in range(len(leaves))]
        assert [bar.get_height() for bar in bars] == pytest.approx(terms)
        tops = [bar.get_y() + bar.get_height() for bar in bars]
        assert max([*tops, 0.0]) == pytest.approx(sum(t for t in terms if t > 0))
        assert min([*tops, 0.0]) == pytest.approx(sum(t for t in terms if t < 0))
    with pytest.raises(ArgumentError, match="one panel for one meta-parameter"):
        figures.contributions(gimli.trace(gimli.step_through(**network())), ax=Figure().subplots())


def test_figures_of_one_panel_draw_where_they_are_asked_to() -> None:
    trace = cached("momentum").page()
    for draw in (
        lambda ax: figures.memory(trace, ax=ax),
        lambda ax: figures.hyperparameters([{"lr": 0.1, "b": 1}], ax=ax),
    ):
        figure = Figure()
        ax = figure.subplots()
        assert draw(ax) is figure
        assert figure.axes == [ax]
        assert ax.lines


def test_growth_and_the_worst_steps() -> None:
    trace = gimli.trace(gimli.step_through(**network()))
    B = {m.j: m.values["B"] for m in gimli.step_through(**network()) if m.line in (9, 14)}
    norms = {j: torch.cat([t.reshape(-1) for t in tree.values()]).double().norm().item() for j, tree in B.items()}
    factors = {j: norms[j] / norms[j + 1] for j in range(4)}
    assert [bar.get_height() for bar in figures.growth(trace).axes[0].patches] == pytest.approx(list(factors.values()))
    worst = worst_steps(trace, 3)
    assert [step.j for step in worst] == sorted(factors, key=factors.__getitem__, reverse=True)[:3]
    for step in worst:
        assert step.tensor == max(B[step.j], key=lambda name: B[step.j][name].norm().item())
        terms = {name: float(trace.data["q"][name]["norm"][step.j]) for name in ("direct", "curvature")}
        assert (step.cause == "curvature") == (terms["curvature"] > terms["direct"])
        assert step.address == f"#line=14&j={step.j}"


def test_a_step_that_breaks_the_adjoint_is_the_worst() -> None:
    def break_at_2(moment: Moment) -> None:
        if (moment.line, moment.j) == (14, 2):
            moment.change("B", {"w": torch.full((3,), torch.nan)})

    assert [step.j for step in worst_steps(gimli.trace(gimli.step_through(**network()), intervene=break_at_2))] == [
        2,
        3,
    ]

    def forget(moment: Moment) -> None:
        if moment.line == 14:
            moment.change("B", {name: torch.zeros_like(t) for name, t in moment.values["B"].items()})

    forgotten = gimli.trace(gimli.step_through(**network()), intervene=forget)
    assert forgotten.error is None
    assert [step.j for step in worst_steps(forgotten)] == [3]


def test_a_map_of_tensors_and_steps() -> None:
    trace = gimli.trace(gimli.step_through(**network()))
    (image,) = figures.tensor_map(trace).axes[0].images
    drawn = np.asarray(image.get_array())
    for j, cells in trace.data["q"]["B"]["cells"].items():
        assert [10**x for x in drawn[:, j]] == pytest.approx([cell["n"] for cell in cells], rel=1e-12)
    with pytest.raises(ArgumentError, match="quantity: expected one of 'theta'"):
        figures.tensor_map(trace, "W")


def test_an_ablation_stands_beside_the_exact_run() -> None:
    exact, rough = (
        gimli.trace(gimli.step_through(**network(), approximation=a), title=t)
        for a, t in ((None, "exact"), (gimli.FirstOrder(), "first order"))
    )
    lines = figures.adjoints(rough, beside=exact).axes[0].lines
    assert list(lines[-1].get_ydata()) == [float(exact.data["q"]["B"]["norm"][j]) for j in range(5)]
    assert "exact" in str(lines[-1].get_label())


def test_terms_of_many_sizes_are_drawn_on_a_signed_logarithm() -> None:
    figure = figures.contributions(cached("exploding").page())
    assert figure.axes[0].get_yscale() == "symlog"
    assert figure.axes[0].get_ylabel() == r"$A_{\mathrm{lr}}$"
    assert figures.contributions(cached("quadratic").page()).axes[0].get_yscale() == "linear"


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
