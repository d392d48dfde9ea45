"""`gimli few-shot` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gimli_core.commands.command_line import main
from gimli_core.few_shot.recipes import RECIPES

QUICK = ["--steps", "2", "--filters", "2", "--episodes", "20", "--tasks", "1", "--train-way", "5"]


@pytest.fixture(autouse=True)
def in_float32() -> None:
    torch.set_default_dtype(torch.float32)  # of the command; conftest puts float64 back


def test_a_method_prints_its_figure_and_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["few-shot", "prototypical", "--out", str(tmp_path), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "prototypical: " in printed
    assert "the paper: says nothing of this setting" in printed
    assert "batch norm   running" in printed
    assert (tmp_path / "prototypical" / "result.json").is_file()
    again = main(["few-shot", "prototypical", "--out", str(tmp_path), *QUICK])  # has ended: evaluated anew
    assert again == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["maml", "--way", "6"], "--way: expected at most the 5 classes for test; got 6"),
        (["maml", "--data", "nowhere"], "--data nowhere: expected a file or folder; got no such path. Check it."),
        (["maml", "--rate", "0"], "--rate: expected a number above 0; got 0.0"),
        (["maml", "--split", "ravi"], "split: expected data that brings its split 'ravi'; got none"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert main(["few-shot", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"gimli: {line}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "before", "now"),
    [
        (["--steps", "3"], "'training 2 meta-batches of 1 tasks'", "'training 3 meta-batches of 1 tasks'"),
        (["--filters", "3"], "'network conv4, 2 filters, ", "'network conv4, 3 filters, "),
        (["--network", "strided-conv4"], "'network conv4, 2 filters, ", "'network strided-conv4, 2 filters, "),
        (["--seed", "1"], "'seed 0: data digits'", "'seed 1: data digits'"),
        (["--rate", "0.5"], "0.002", "0.5"),
    ],
)
def test_another_setting_is_named_where_a_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], before: str, now: str
) -> None:
    assert main(["few-shot", "prototypical", "--out", str(tmp_path), *QUICK]) == 0
    assert main(["few-shot", "prototypical", "--out", str(tmp_path), *QUICK, *changed]) == 2
    said = capsys.readouterr().err
    old, new = said.split("where this one's is ")
    assert f" is {before}" in old
    assert new.startswith(now)
    assert len(said) < 700


@pytest.mark.long
def test_the_table_runs_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["few-shot", "table", "--out", str(tmp_path), *QUICK]) == 0
    first = capsys.readouterr().out
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + len(RECIPES)
    times = {name: (tmp_path / name / "result.json").stat().st_mtime_ns for name in RECIPES}
    assert main(["few-shot", "table", "--out", str(tmp_path), *QUICK]) == 0
    assert capsys.readouterr().out == first
    assert times == {name: (tmp_path / name / "result.json").stat().st_mtime_ns for name in RECIPES}


def test_the_table_does_not_collect_another_setting_s_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["few-shot", "prototypical", "--out", str(tmp_path), *QUICK]) == 0
    assert main(["few-shot", "table", "--way", "3", "--out", str(tmp_path), *QUICK]) == 2
    line = "a result for digits, 3-way 1-shot; got one for digits, 5-way 1-shot. Give another --out."
    assert line in capsys.readouterr().err
    assert not (tmp_path / "maml").exists()  # nothing was trained
