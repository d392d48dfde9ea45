"""What the benchmarks write down: read again as it was, compared without false alarms, and quoted rightly."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.compare import compared, main, report
from tests.benchmarks.figures import PAGE, page, renewed, tables
from tests.benchmarks.history import Figure, Run, begun, misquoted, noted, published, quoted, read

BENCHMARKS = Path(__file__).with_name("benchmarks")
ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("*.md"))]


def run_with(**figures: Figure) -> Run:
    return Run("made", "2026-01-01T00:00:00+00:00", "", {"cores": 2}, {}, dict(figures))


def repeats(generator: np.random.Generator, centre: float, count: int = 9) -> Figure:
    return Figure("s", tuple(centre * np.exp(0.05 * generator.standard_normal(count))))


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    with noted("made", argparse.Namespace(json=path, steps=3)) as run:
        run.note("a/time", [0.5, 0.25], "s")
        run.note("a/peak", 1024, "bytes")
    assert read(path) == run
    assert run.arguments == {"steps": "3"}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_a_run_that_failed_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), noted("made", argparse.Namespace(json=tmp_path / "a.json")):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", '{"benchmark": "a"}', '{"figures": {"a": {}}}'])
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="expected the JSON of a benchmark's run"):
        read(path)


def test_a_figure_has_one_name_and_a_known_unit() -> None:
    run = begun("made", {})
    run.note("a", 1, "s")
    for name, unit in (("a", "s"), ("b", "parsecs")):
        with pytest.raises(ValueError, match="expected a new name and a unit"):
            run.note(name, 1, unit)
    for name in ("|H|", "a --> b", "a\nb"):
        with pytest.raises(ValueError, match="expected a name that a table and a comment can hold"):
            run.note(name, 1, "s")


def test_noise_is_no_change() -> None:
    """400 figures whose repeats scatter by 5 %, with none that changed; the level is one false alarm in a hundred."""
    generator = np.random.default_rng(0)
    a, b = (run_with(**{f"f{i}": repeats(generator, 1.0) for i in range(400)}) for _ in range(2))
    assert [c.name for c in compared(a, b) if c.verdict != "same"] == []


def test_a_change_is_found_among_many_that_are_none() -> None:
    generator = np.random.default_rng(0)
    a, b = (
        run_with(**{f"f{i}": repeats(generator, factor if i == 7 else 1.0) for i in range(100)}) for factor in (1, 1.3)
    )
    assert {c.name: c.verdict for c in compared(a, b) if c.verdict != "same"} == {"f7": "more"}
    assert {c.name: c.verdict for c in compared(b, a) if c.verdict != "same"} == {"f7": "less"}


@pytest.mark.parametrize(
    ("before", "after", "unit", "verdict"),
    [
        ([1.0], [1.05], "bytes", "more?"),
        ([1.0], [1.02], "bytes", "same"),
        ([1.0, 1.1], [1.3, 1.4], "s", "more"),
        ([1.0, 1.3], [1.25, 1.5], "s", "same"),  # ranges that overlap
        ([1e-15], [1.8e-15], "relative error", "same"),
        ([1e-15], [1e-7], "relative error", "more?"),
        ([1e-15], [float("nan")], "relative error", "more?"),
        ([0.0], [0.0], "relative error", "same"),
        ([0.0], [1e-9], "relative error", "more?"),
    ],
)
def test_few_repeats(before: list[float], after: list[float], unit: str, verdict: str) -> None:
    a, b = (run_with(f=Figure(unit, tuple(values))) for values in (before, after))
    assert [c.verdict for c in compared(a, b)] == [verdict]


def test_what_only_one_run_has_is_said() -> None:
    a, b = run_with(f=Figure("s", (1.0,)), gone=Figure("s", (1.0,))), run_with(f=Figure("s", (1.0,)))
    b.machine["cores"] = 4
    lines = report(a, b, compared(a, b), everything=False)
    assert "another machine: cores 2 → 4" in lines
    assert any(line.startswith("only in") and line.endswith("gone") for line in lines)
    assert lines[-1] == "0 of 1 figures changed beyond noise"


def test_the_command_says_whether_anything_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, value in zip(paths, (1.0, 2.0), strict=True):
        run_with(f=Figure("s", (value, value))).write(path)
    for pair, code in ((paths, 1), ([paths[0]] * 2, 0)):
        monkeypatch.setattr("sys.argv", ["compare", *map(str, pair)])
        assert main() == code
    assert "more" in capsys.readouterr().out


def programs() -> list[Path]:
    """The benchmarks: `compare` and `figures` read their runs, and `profile` and the like are no programs."""
    runnable = [p for p in BENCHMARKS.rglob("*.py") if '__name__ == "__main__"' in p.read_text(encoding="utf-8")]
    return [path for path in runnable if path.stem not in ("compare", "figures")]


def test_the_guide_names_every_benchmark() -> None:
    names = {path.parent.name if path.stem == "__main__" else path.stem for path in programs()}
    table = (ROOT / "examples" / "guide" / "measured.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `python -m tests\.benchmarks\.(\w+)`", table, flags=re.MULTILINE)) == names


def test_every_benchmark_writes_a_run() -> None:
    assert len(programs()) > 9
    for path in programs():
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        names = {f.id if isinstance(f, ast.Name) else f.attr for f in calls if isinstance(f, (ast.Name, ast.Attribute))}
        assert {"add_history", "noted"} <= names, path


QUOTABLE = {
    "made": run_with(
        t=Figure("s", (0.31, 0.25, 0.27)),
        e=Figure("relative error", (1.26e-7,)),
        large=Figure("relative error", (2.6074e11,)),
    )
}


@pytest.mark.parametrize(
    "text",
    [
        "It takes 0.27 s<!-- made/t --> alone.",
        "It takes 0.3 s<!-- made/t -->, or 270 ms<!-- made/t -->.",
        "| 1.3e-7<!-- made/e --> |",
        "| 2.6e+11<!-- made/large --> |",
        "within 0.1-0.27 s<!-- made/t -->",
        "27 %<!-- made/t --> is 0.27×<!-- made/t -->, and 0.5 stands for itself.",
    ],
)
def test_right_quotations(text: str) -> None:
    assert quoted(text)
    assert misquoted(text, QUOTABLE) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.28 s<!-- made/t -->", "0.28 s: made/t is 0.27"),
        ("1.2e-7<!-- made/e -->", "1.2e-7 : made/e is 1.3e-07"),
        ("0.27 s<!-- made/u -->", "0.27: no such figure: made/u"),
        ("0.27 s<!-- other/t -->", "0.27: no such figure: other/t"),
        ("0.27 h<!-- made/t -->", "0.27 h: expected one of"),
        ("-0.27 s<!-- made/t -->", "-0.27 s: made/t is 0.27"),
    ],
)
def test_wrong_quotations(text: str, said: str) -> None:
    (line,) = misquoted(text, QUOTABLE)
    assert line.startswith(said)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_the_texts_quote_what_was_measured(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert misquoted(text, published()) == []
    marks = [mark for mark in text.split("<!-- ")[1:] if mark.split("/")[0] in published()]
    assert len(marks) == len(quoted(text))  # a mark behind something that is no number is quoted by none


def test_the_page_of_figures_is_written_from_the_published_runs() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(published())


def test_a_page_quotes_its_runs_rightly() -> None:
    values = {
        "s": 0.0123456,
        "bytes": 12345678,
        "ratio": 1.0,
        "relative error": 3.3e-9,
        "loss": -1234.5,
        "gradients": 0.0,
    }
    figures = {f"row {i}/{unit}": Figure(unit, (value,)) for i in range(2) for unit, value in values.items()}
    figures["row 2/s"] = Figure("s", (float("nan"),))
    runs = {"made": run_with(**figures)}
    text = page(runs)
    assert len(quoted(text)) == 12
    assert misquoted(text, runs) == []
    assert "| row 0 | 12.3 ms<!-- made/row 0/s --> | 11.8 MiB<!-- made/row 0/bytes --> | 1.00<!--" in text
    assert text.splitlines()[-1] == "| row 2 | – | – | – | – | – | – |"


def test_rows_without_a_common_column_stand_in_tables_of_their_own() -> None:
    places = [("a", "time"), ("mark", "reached"), ("b", "peak"), ("mark", "at most"), ("b", "time"), ("c", "peak")]
    assert tables(places) == [(["a", "b", "c"], ["time", "peak"]), (["mark"], ["reached", "at most"])]
    runs = {"made": run_with(**{"/".join(place): Figure("s", (1.0,)) for place in places})}
    headings = [line for line in page(runs).splitlines() if line.startswith("| |")]
    assert headings == ["| | time | peak |", "| | reached | at most |"]


def test_quoted_figures_are_renewed_to_the_digits_that_they_have() -> None:
    text = "0.31 s<!-- made/t -->, 310 ms<!-- made/t -->, 9.9e-1<!-- made/e -->, 4 s, 0.1 s<!-- made/u -->"
    said = "0.27 s<!-- made/t -->, 270 ms<!-- made/t -->, 1.3e-07<!-- made/e -->, 4 s, 0.1 s<!-- made/u -->"
    assert renewed(text, QUOTABLE) == said
