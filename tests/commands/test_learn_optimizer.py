"""`gimli learn-optimizer` on its smallest settings, and what its training is made of."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from gimli_core.commands import learn_optimizer
from gimli_core.commands.command_line import main
from gimli_core.demo.data import load
from gimli_core.demo.learning_to_optimize import ARCHITECTURES, RULES, WINDOW, begun, curve, learn, tuned_adam
from gimli_core.optimizers import Adam


def test_it_trains_judges_draws_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn_optimizer, "JUDGED", 2)
    out, saved = tmp_path / "curves.png", tmp_path / "net.pt"
    code = main(
        [
            "learn-optimizer",
            "--rule",
            "mlp",
            "--windows",
            "2",
            "--episode",
            "20",
            "--out",
            str(out),
            "--save",
            str(saved),
        ]
    )
    told = capsys.readouterr().out
    assert code == 0
    assert "Adam, tuned by as many inner steps (40): the best of 2 rates" in told
    assert told.count("never seen: at 10:") == 2
    assert out.stat().st_size > 1000
    assert torch.load(saved, weights_only=True).keys() == RULES["mlp"]().parameters().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--windows", "0"], "--windows"), (["--episode", "5"], "--episode"), (["--out", "curves.txt"], "--out")],
)
def test_bad_options_are_refused_before_any_work(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn-optimizer", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_the_same_whenever_it_is_asked_for_and_windows_go_on() -> None:
    splits = load(None)
    first, again = (begun(ARCHITECTURES[0], splits.train, 10, "learn", 3, 0) for _ in range(2))
    for x, y in zip(itertools.islice(first.batches, 3), itertools.islice(again.batches, 3), strict=True):
        assert torch.equal(x.x, y.x)
    assert all(torch.equal(v, again.theta_0[k]) for k, v in first.theta_0.items())
    learned = list(learn(RULES["mlp"](), splits.train, 10, 2, 2 * WINDOW, 0))
    assert [one.steps for one in learned] == [WINDOW, 2 * WINDOW]
    assert learned[1].loss < learned[0].loss  # the second window goes on from where the first one ended
    assert any(not torch.equal(learned[0].net[k], learned[1].net[k]) for k in learned[0].net)


def test_adam_is_tuned_by_the_mean_loss_of_runs_of_its_own() -> None:
    splits = load(None)
    adam, rates = tuned_adam(splits.train, 10, 60, 20, 0)
    assert len(rates) == 3
    losses = [
        curve(Adam(lr=rate), ARCHITECTURES[0], splits.train, 10, 20, "tune", [number], 0).mean().item()
        for number, rate in enumerate(rates)
    ]
    assert adam.lr == rates[losses.index(min(losses))]
