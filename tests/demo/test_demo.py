"""`gimli demo`: its data, its outer loop, its picture, its verdict."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gimli_core.arguments.approximation import ThetaOnly
from gimli_core.commands import demo as command
from gimli_core.commands.command_line import main
from gimli_core.demo import data, picture, tables
from gimli_core.demo.learning import Training, grid_rates, learn, score, train
from gimli_core.errors import ArgumentError
from gimli_core.meta_gradient import meta_gradient
from gimli_core.verification.report import Report

Arrays = dict[str, NDArray[np.generic]]


def table(rows: int = 60, classes: int = 3) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Three numbers a row, the first of which tells the class."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % classes
    return np.column_stack([y + 0.1 * rng.standard_normal(rows), rng.standard_normal((rows, 2))]), y


def write_csv(path: Path, header: str = "", separator: str = ",", labels: tuple[str, ...] = ("0", "1", "2")) -> Path:
    x, y = table()
    lines = [separator.join([*map(repr, map(float, row)), labels[label]]) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join([header, *lines] if header else lines), encoding="utf-8")
    return path


def test_the_digits_are_split_by_class_without_overlap() -> None:
    splits = data.load(None, seed=3)
    parts = splits[2:5]
    assert sum(len(part.y) for part in parts) == 1797
    assert splits.classes == 10
    everything = torch.cat([part.x for part in parts])
    assert len(torch.unique(everything, dim=0)) == 1797
    for part, share in zip(parts, (0.5, 0.25, 0.25), strict=True):
        assert part.y.bincount().sub(179.7 * share).abs().max() < 4
    # Standardised by the training rows alone.
    assert splits.train.x.mean(0).abs().max() < 1e-14
    deviation = splits.train.x.std(0, correction=0)
    assert torch.all((deviation - 1).abs().lt(1e-13) | (deviation == 0))
    assert splits.val.x.mean(0).abs().max() > 1e-3
    grey = splits.test.x * splits.deviation + splits.mean  # as the pixels were: whole numbers
    assert (grey - grey.round()).abs().max() < 1e-12


def test_another_seed_splits_otherwise() -> None:
    assert torch.equal(data.load(None, 1).train.x, data.load(None, 1).train.x)
    assert not torch.equal(data.load(None, 1).train.x, data.load(None, 2).train.x)


@pytest.mark.parametrize(
    ("header", "separator", "labels"),
    [
        ("", ",", ("0", "1", "2")),
        ("length,width,height,kind", ",", ("7", "8", "9")),
        ("length;width;height;kind", ";", ("ash", "elm", "oak")),
        ("", "\t", ("ash", "elm", "oak")),
        ("0,1,2,label", ",", ("0", "1", "2")),  # as pandas writes a frame without names
    ],
)
def test_a_csv_file_in_its_usual_forms(tmp_path: Path, header: str, separator: str, labels: tuple[str, ...]) -> None:
    splits = data.load(str(write_csv(tmp_path / "trees.csv", header, separator, labels)))
    assert splits.classes == 3
    assert [len(part.y) for part in splits[2:5]] == [30, 15, 15]
    # The first column tells the class, in the order of the labels.
    means = [splits.train.x[splits.train.y == c, 0].mean().item() for c in range(3)]
    assert means == sorted(means)


@pytest.mark.parametrize("names", tables.ARRAY_NAMES)
def test_npz_files_under_every_pair_of_names(tmp_path: Path, names: tuple[str | None, ...]) -> None:
    x, y = table()
    x_name, y_name, x_test, y_test = names
    arrays: Arrays = {str(x_name): x.reshape(60, 3, 1), str(y_name): y.astype(np.uint8)}
    if x_test is not None:
        arrays |= {x_test: x[:6].reshape(6, 3, 1), str(y_test): y[:6].astype(np.uint8)}
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    sizes = [len(part.y) for part in data.load(str(tmp_path / "mine.npz"))[2:5]]
    assert sizes == ([30, 15, 15] if x_test is None else [39, 21, 6])


def test_of_a_large_table_an_even_share_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_ROWS", 30)
    x, y = table()
    y[3:] = np.where(y[3:] == 2, 1, y[3:])  # class 2 keeps one row of its own ...
    y[10:13] = 2  # ... and three more: too few to thin out
    splits = data.split("t", tables.Table(x, y, np.zeros(60, bool)), seed=0)
    assert 25 <= sum(len(part.y) for part in splits[2:5]) <= 35
    assert all((part.y == 2).any() for part in splits[2:5])
    assert "of its 60 rows" in splits.name


def spoiled(change: Callable[[list[list[str]]], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        lines = [line.split(",") for line in write_csv(path, "length,width,height,kind").read_text().splitlines()]
        change(lines)
        path.write_text("\n".join(",".join(line) for line in lines), encoding="utf-8")

    return write


def cell(line: int, column: int, value: str) -> Callable[[Path], None]:
    return spoiled(lambda lines: lines[line].__setitem__(column, value))


def arrays(**held: NDArray[np.generic]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **held)  # type: ignore[arg-type]

    return write


X, Y = table()

BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "got no such file"),
    "a directory": (lambda path: path.mkdir(), "got a directory"),
    "empty": (lambda path: path.write_text(""), "one column or none"),
    "one column": (lambda path: path.write_text("1\n2\n3\n"), "one column or none"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00\x80" * 50), "expected an .npz or CSV file"),
    "text in a feature": (cell(5, 1, "tall"), "expected numbers in column 'width'; got 'tall' in line 6"),
    "nan": (cell(5, 1, "nan"), "a missing or infinite value in row 5, column 2 (1 in all)"),
    "an empty cell": (cell(7, 2, ""), "a missing or infinite value in row 7, column 3 (1 in all)"),
    "infinity": (cell(5, 0, "inf"), "a missing or infinite value in row 5, column 1 (1 in all)"),
    "no label": (cell(9, 3, ""), "expected a label in every line; got none in line 10"),
    "fractional labels": (cell(9, 3, "1.5"), "got fractions"),
    "a short line": (spoiled(lambda lines: lines[4].pop()), "expected 4 columns in line 5; got 3"),
    "one class": (spoiled(lambda lines: [line.__setitem__(3, "1") for line in lines[1:]] and None), "got 1. "),
    "a rare class": (cell(9, 3, "9"), "got 1 of class '9.0'"),
    "too few rows": (spoiled(lambda lines: lines.__delitem__(slice(30, None))), "at least 40 rows; got 29"),
    "unknown arrays": (arrays(images=X, character=Y), "got 'images', 'character'"),
    "pickled objects": (arrays(X=np.array([{}] * 60), y=Y), "Save it with np.savez"),
    "text features": (arrays(X=X.astype(str), y=Y), "expected numbers in X; got <U"),
    "flat features": (arrays(X=X[:, 0], y=Y), "expected X of shape [rows, …]; got shape [60]"),
    "too many labels": (arrays(X=X, y=np.append(Y, 0)), "got [61] for X of shape [60, 3]"),
    "nan in an array": (arrays(X=np.where(X[7, 1] == X, np.nan, X), y=Y), "in row 8, column 2 (1 in all)"),
    "a new test class": (
        arrays(x_train=X, y_train=Y, x_test=X, y_test=Y + 1),
        "expected test classes that occur in training; got '3'",
    ),
}


def member(name: str, content: bytes, **how: int) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", **how) as archive:  # type: ignore[arg-type]
            archive.writestr(name, content)
            archive.writestr("y.npy", header((60,)) + b"\0" * 480)

    return write


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


BAD_FILES |= {
    "fewer columns to test": (
        arrays(X_train=X, y_train=Y, X_test=X[:, :2], y_test=Y),
        "3 columns, as X_train has; got 2",
    ),
    "too many columns": (arrays(X=np.zeros((60, 20_000), np.uint8), y=Y), "at most 10,000 columns; got 20,000"),
    "a large header": (member("X.npy", header((1 << 30, 1))), "at most 200,000,000 numbers"),
    "large items": (member("X.npy", header((60, 2), "<U99999999")), "bytes an array"),
    "no array": (member("X.npy", b"something else"), "plain arrays"),
    "an empty member": (member("X.npy", b""), "plain arrays"),
    "less than the header says": (member("X.npy", header((60, 3))), "plain arrays"),
    "a negative shape": (member("X.npy", header((-60, 3))), "expected"),
    "a member that is no .npy": (member("X", b"x"), "plain arrays"),
}


def test_every_number_and_empty_test_set_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, X_train=X.astype(np.longdouble), y_train=Y, X_test=X[:0], y_test=Y[:0])
    assert data.load(str(path)).train.x.dtype == torch.get_default_dtype()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800.csv", "/dev/zero", "."])
def test_what_is_no_file(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"expected an \.npz or CSV file"):
        data.load(name)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArgumentError, match="no regular file"):
        data.load(str(tmp_path / "fifo"))


@pytest.mark.parametrize(("write", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_clear_errors(tmp_path: Path, write: Callable[[Path], object], says: str) -> None:
    path = tmp_path / "mine.data"
    write(path)
    with pytest.raises(ArgumentError) as raised:
        data.load(str(path))
    assert str(raised.value).startswith(f"--data {path}: expected ")
    assert says in str(raised.value)


def test_a_damaged_npz_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, X=X, y=Y)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 255
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match="expected plain arrays"):
        data.load(str(path))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--outer-steps", "0"], "--outer-steps: expected a whole number from 1; got 0"),
        (["--inner-steps", "-3"], "--inner-steps: expected a whole number from 1; got -3"),
        (["--seed", "-1"], "--seed: expected a whole number from 0; got -1"),
        (["--out", "picture.txt"], "the ending '.txt'"),
        (
            ["--out", "absent/picture.png"],
            "'absent/picture.png': expected a file that can be written; got no directory",
        ),
    ],
)
def test_bad_options_are_found_before_any_work(
    argv: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load", None)
    assert main(["demo", *argv]) == 2
    assert says in capsys.readouterr().err


@pytest.fixture
def training() -> Training:
    x, y = table(120)
    return Training(data.split("table", tables.Table(x, y, np.zeros(120, bool)), seed=0), steps=6, seed=0)


def test_the_outer_loop_follows_the_meta_gradient(training: Training) -> None:
    # Adam's first step goes by the learning rate against the sign of each gradient, so that the signs can be read off.
    start = training.constant(1e-3, 1e-4)
    theta_0, batches = training.run("learn", 0)
    result = meta_gradient(
        training.problem, theta_0, batches, training.splits.val, phi_opt=start.phi_opt, phi_loss=start.log_l2
    )
    ((loss, after),) = learn(training, 1)
    assert loss == result.val_loss.item()
    moved = {
        **{k: (after.lr[k].log() - start.lr[k].log(), result.A_opt["lr"][k]) for k in start.lr},
        **{f"l2 {k}": (after.log_l2[k] - start.log_l2[k], result.A_loss[k]) for k in start.log_l2},
        "beta1": (after.beta1.logit() - start.beta1.logit(), result.A_opt["beta1"]),
        "beta2": (after.beta2.logit() - start.beta2.logit(), result.A_opt["beta2"]),
    }
    assert len(moved) == 10
    for name, (change, gradient) in moved.items():
        # eps = 1e-8 in Adam shortens the step where a gradient is tiny.
        assert gradient != 0, name
        assert change * gradient < 0, name


def test_learning_lowers_the_validation_loss_of_new_runs(training: Training) -> None:
    *_, (_, learned) = learn(training, 40)

    def mean_loss(values: object) -> float:
        runs = [train(training, values, "table", number) for number in range(5)]  # type: ignore[arg-type]
        return sum(score(training, theta, training.splits.val).loss for theta in runs) / 5

    assert mean_loss(learned) < mean_loss(training.constant(1e-3, 1e-4)) / 2


def test_runs_repeat_and_differ_by_number_and_purpose(training: Training) -> None:
    first, again, second, other = (training.run(*key) for key in (("grid", 0), ("grid", 0), ("grid", 1), ("table", 0)))
    assert all(torch.equal(first[0][k], again[0][k]) for k in first[0])
    assert torch.equal(first[1][0].x, again[1][0].x)
    for run in (second, other):
        assert not torch.equal(first[0]["hidden.weight"], run[0]["hidden.weight"])


def test_plain_adam_ends_where_the_engine_does(training: Training) -> None:
    values = training.constant(0.01, 1e-2)
    theta_0, batches = training.run("table", 0)
    result = meta_gradient(
        training.problem, theta_0, batches, training.splits.val, phi_opt=values.phi_opt, phi_loss=values.log_l2
    )
    for name, theta in train(training, values, "table", 0).items():
        torch.testing.assert_close(theta, result.theta_J[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("outer_steps", [1, 10, 80])
def test_the_grid_has_no_less_work_than_the_outer_loop(outer_steps: int) -> None:
    # 9F a step of a meta-gradient, 3F a training step, 5 runs a rate.
    assert 5 * 3 * len(grid_rates(outer_steps)) >= 9 * outer_steps


def demo(tmp_path: Path, *more: str) -> int:
    file = write_csv(tmp_path / "trees.csv", labels=("ash", "elm", "oak"))
    return main(
        ["demo", "--data", str(file), "--out", str(tmp_path / "p.png"), "--outer-steps=3", "--inner-steps=12", *more]
    )


def test_the_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(tmp_path) == 0
    out = capsys.readouterr().out
    for said in (
        "trees.csv",
        "before: defaults",
        "best rate",
        "after: learned",
        'A_opt["lr"]["hidden.weight"]',
        "ok: ",
    ):
        assert said in out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "trees.csv"]


def test_a_wrong_meta_gradient_makes_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = command.verify

    def verify(*arguments: object, **more: object) -> Report:
        return honest(*arguments, **more, approximation=ThetaOnly())  # type: ignore[arg-type]

    monkeypatch.setattr(command, "verify", verify)
    assert demo(tmp_path) == 1
    assert "DISAGREES" in capsys.readouterr().out


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "p.png"
    old.write_text("old", encoding="utf-8")

    def savefig(self: object, file: BinaryIO, **how: object) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(picture.Figure, "savefig", savefig)
    x, y = table()
    start = Training(data.split("table", tables.Table(x, y, np.zeros(60, bool)), seed=0), steps=1, seed=0).constant(
        1e-3, 1e-4
    )
    with pytest.raises(ArgumentError, match="no space"):
        picture.save(old, [1.0], [start], 1.0, 0.1)
    assert old.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.long
def test_on_the_digits_what_is_learned_beats_the_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    losses = {row: float(re.findall(rf"{row}.*?(\d\.\d+) ±", out)[0]) for row in ("before", "best rate", "after")}
    assert losses["after"] < losses["best rate"] < losses["before"]
