"""All outcomes as one table, in Markdown and CSV, and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gimli_core.few_shot.figures import figure_of
from gimli_core.few_shot.outcome import Outcome
from gimli_core.memory.atomic_file import writing

__all__ = ["draw", "markdown", "save"]

HEAD = ("method", "data", "way", "shot", "accuracy, %", "± 95 %", "episodes", "paper, %", "differs from the paper in")


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """One row an outcome, as text."""
    return [
        (
            each.method,
            each.protocol.data,
            str(each.protocol.way),
            str(each.protocol.shot),
            f"{each.accuracy.mean:.2f}",
            f"{each.accuracy.half_width:.2f}",
            str(each.accuracy.episodes),
            each.paper,
            "; ".join(each.differences),
        )
        for each in outcomes
    ]


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table, and below it each protocol."""
    lines = [HEAD, tuple("---" for _ in HEAD), *rows(outcomes)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    protocols = "\n\n".join(f"**{each.method}**\n\n```\n{each.protocol}\n```" for each in outcomes)
    return f"{table}\n\n{protocols}\n"


def save(outcomes: Sequence[Outcome], folder: Path) -> tuple[Path, Path, Path]:
    """`table.md`, `table.csv` and `table.png` in a folder, each whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *rows(outcomes)])
    paths = (folder / "table.md", folder / "table.csv", folder / "table.png")
    for path, content in zip(paths, (markdown(outcomes), text.getvalue()), strict=False):
        with writing("--out", path) as file:
            file.write(content.encode())
    draw(outcomes, paths[2])
    return paths


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Ours with its interval, and the paper's, one line a method. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.35 * len(outcomes)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(outcomes))
    means, widths = [each.accuracy.mean for each in outcomes], [each.accuracy.half_width for each in outcomes]
    axes.errorbar(means, places, xerr=widths, fmt="o", capsize=3, label="ours, mean ± 95 %")
    settings = [(each.method, each.protocol.data, each.protocol.way, each.protocol.shot) for each in outcomes]
    published = [(figure_of(*setting), place) for setting, place in zip(settings, places, strict=True)]
    there = [(said, place) for said, place in published if said is not None]
    if there:
        axes.errorbar(
            [said.mean for said, _ in there],
            [place for _, place in there],
            xerr=[said.half_width or 0.0 for said, _ in there],
            fmt="x",
            color="gray",
            label="paper",
        )
    names = [f"{name}: {data}, {way}-way {shot}-shot" for name, data, way, shot in settings]
    axes.set(yticks=list(places), yticklabels=names, xlabel="accuracy on held-out classes, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with writing("--out", path) as file:
        figure.savefig(file, format="png", dpi=150)
