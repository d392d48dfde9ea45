"""`gimli attribute` on its smallest settings and on a user's table, and the parts of its trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gimli_core.attribution.classification import flagged, plant, setting
from gimli_core.attribution.scores import Scores
from gimli_core.commands import attribute
from gimli_core.commands.command_line import main
from gimli_core.demo.data import load

SMALL = ["--examples", "60", "--steps", "5", "--subsets", "4"]


def test_it_scores_tries_tells_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribute, "MOST_PARAMETERS", 10)
    out, saved = tmp_path / "scores.png", tmp_path / "scores.npz"
    options = ["attribute", *SMALL, "--out", str(out), "--scores", str(saved)]
    assert main(options) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "60 training rows, 3 of them with a wrong label" in told
    assert "Influence functions left out" in told
    assert "meta-gradient" in told
    assert out.stat().st_size > 1000
    assert "Rows of the data, from 0, that most raise the validation loss" in told
    first = Scores.load(saved)
    assert first.values.shape == (6, 60)
    assert first.rows is not None
    assert len(first.rows.unique()) == 60
    assert main(options) == 0  # from the file
    assert torch.equal(Scores.load(saved).values, first.values)
    assert main([*options, "--seed", "1"]) == 2
    assert "scores of another" in capsys.readouterr().err


def test_on_a_table_with_the_baseline_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=120)
    x = rng.normal(size=(120, 3)) + 2 * y[:, None]
    np.savez(tmp_path / "table.npz", X=x, y=y)
    options = ["attribute", *SMALL, "--data", str(tmp_path / "table.npz"), "--out", str(tmp_path / "a.svg")]
    assert main([*options, "--scores", str(tmp_path / "s.npz")]) == 0
    told = capsys.readouterr().out
    assert told.count("influence (") == len(attribute.DAMPINGS)
    assert "planted" not in told  # a user's labels are left as they are
    assert "Wrong labels" not in told
    assert (tmp_path / "a.svg").stat().st_size > 1000
    scores = Scores.load(tmp_path / "s.npz")
    assert scores.rows is not None
    splits = load(str(tmp_path / "table.npz"), 0)
    assert set(scores.rows.tolist()) == set(splits.rows["train"].tolist())
    for part in ("train", "val", "test"):
        assert torch.equal(torch.from_numpy(y)[splits.rows[part]], getattr(splits, part).y)
    assert main([*options, "--planted", "0.1"]) == 0
    assert "6 of them with a wrong label" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subsets", "1"], "--subsets"),
        (["--steps", "0"], "--steps"),
        (["--planted", "0.7"], "--planted"),
        (["--out", "a.txt"], "--out"),
        (["--scores", "no/such/file.npz"], "--scores"),
        (["--data", "no_such.csv"], "--data"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["attribute", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_planted_labels_are_wrong_ones() -> None:
    y = torch.arange(200) % 7
    changed, planted = plant(y, 7, 0.05, torch.Generator().manual_seed(0))
    assert int(planted.sum()) == 10
    assert torch.equal(changed != y, planted)
    assert int(changed.min()) >= 0
    assert int(changed.max()) < 7


def test_what_is_flagged() -> None:
    harm, planted = torch.tensor([3.0, -1.0, 2.0, 0.0]), torch.tensor([True, False, False, True])
    assert flagged(harm, planted, 1) == (1.0, 0.5)
    assert flagged(harm, planted, 2) == (0.5, 0.5)
    assert flagged(harm, planted, 3) == (2 / 3, 1.0)


@pytest.mark.parametrize(("N", "steps"), [(250, 5), (30, 3)])
def test_batches_pass_each_example_once_an_epoch(N: int, steps: int) -> None:
    made = setting(torch.randn(N, 4), torch.zeros(N, dtype=torch.long), 2, steps, torch.Generator().manual_seed(0))
    n = min(N, 100)
    assert [len(b["rows"]) for b in made.batches] == [n] * steps
    rows: list[Tensor] = [b["rows"] for b in made.batches[: N // n]]
    assert len(torch.cat(rows).unique()) == n * (N // n)
    assert torch.equal(made.batches[-1]["x"], made.full_batch["x"][made.batches[-1]["rows"]])
