"""The guide's page of figures, written from the runs that are published: no figure in it is typed by hand.

    python -m tests.benchmarks.figures      writes examples/guide/figures.md, and renews what other texts quote

A run becomes published by `python -m tests.benchmarks.compare --publish A.json`. On the page each benchmark has a
table, or several: rows without a column in common stand in tables of their own. A figure is named `row/column`, and
stands there as the median of its repeats, quoted (`history.quoted`), so that the test which holds every text to the
published runs holds the page as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.benchmarks.history import NUMBER, ROOT, SCALES, Figure, Run, digits, published

PAGE = ROOT / "examples" / "guide" / "figures.md"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("*.md"))]
SHOWN = {"bytes": "MiB", "s": "s"}  # of a unit, the scale that a page shows it in

HEAD = """# Figures

This page is written by `python -m tests.benchmarks.figures` from `tests/benchmarks/published.json`;
[how figures are measured](measured.md). A cell is the median of the repeats.
"""


def page(runs: Mapping[str, Run]) -> str:
    """The page, as Markdown."""
    if not runs:
        none = "No run has been published yet: the programs in [measured](measured.md) print the same tables.\n"
        return f"{HEAD}\n{none}"
    return HEAD + "".join("\n" + "\n".join(of_run(run)) + "\n" for _, run in sorted(runs.items()))


def of_run(run: Run) -> list[str]:
    """A heading, where and when it was measured, and the tables."""
    options = " ".join(f"{k}={v}" for k, v in run.arguments.items() if v not in ("None", "False"))
    machine = ", ".join(f"{k} {run.machine[k]}" for k in ("processor", "threads", "torch") if run.machine.get(k))
    lines = [
        f"## {run.benchmark}",
        "",
        f"`python -m tests.benchmarks.{run.benchmark}`, {run.time[:10]}, commit {run.commit}.",
    ]
    lines += [f"Machine: {machine}. Options: {options}."]
    names = {split(name): name for name in run.figures}
    for rows, columns in tables(names):
        lines += ["", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            values = [cell(run, names.get((row, column))) for column in columns]
            lines.append(f"| {row} | {' | '.join(values)} |")
    return lines


def tables(places: Iterable[tuple[str, str]]) -> list[tuple[list[str], list[str]]]:
    """(rows, columns) of each table that (row, column) make, in their order: rows with a common column stand in one."""
    found: list[tuple[list[str], list[str]]] = []
    for row, column in places:
        apart = [table for table in found if row not in table[0] and column not in table[1]]
        joined = [table for table in found if table not in apart]
        one = ([row for rows, _ in joined for row in rows], [column for _, columns in joined for column in columns])
        for names, name in zip(one, (row, column), strict=True):
            if name not in names:
                names.append(name)
        at = found.index(joined[0]) if joined else len(found)
        found = [table for table in found[:at] if table in apart] + [one] + [t for t in found[at:] if t in apart]
    return found


def split(name: str) -> tuple[str, str]:
    """(row, column): what stands before the last slash, and behind it."""
    row, _, column = name.rpartition("/")
    return row, column


def cell(run: Run, name: str | None) -> str:
    """A figure with the mark that says which it is; a dash where there is none."""
    if name is None or not math.isfinite(run.figures[name].median):
        return "–"
    figure = run.figures[name]
    scale = "ms" if figure.unit == "s" and 0 < figure.median < 0.1 else SHOWN.get(figure.unit, "")
    return f"{shown(figure, scale)} {scale}".rstrip() + f"<!-- {run.benchmark}/{name} -->"


def shown(figure: Figure, scale: str) -> str:
    """The median to three digits."""
    value = SCALES[scale] * figure.median
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    before = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, 3 - before)}f}"


def renewed(text: str, runs: Mapping[str, Run]) -> str:
    """A text whose quoted numbers are those of the published runs, to the digits that each is shown with."""

    def number(match: re.Match[str]) -> str:
        benchmark, _, name = match["name"].partition("/")
        scale = match["scale"].strip()
        if benchmark not in runs or name not in runs[benchmark].figures or scale not in SCALES:
            return match[0]  # `misquoted` says what is wrong
        form = f".{digits(match['number'])}{'e' if 'e' in match['number'] else 'f'}"
        value = SCALES[scale] * runs[benchmark].figures[name].median
        return f"{value:{form}}{match['scale']}<!-- {match['name']} -->"

    return NUMBER.sub(number, text)


def write(path: Path, text: str) -> None:
    """Where it is another one."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")


def main() -> None:
    runs = published()
    write(PAGE, page(runs))
    for path in TEXTS:
        if path != PAGE:
            write(path, renewed(path.read_text(encoding="utf-8"), runs))


if __name__ == "__main__":
    main()
