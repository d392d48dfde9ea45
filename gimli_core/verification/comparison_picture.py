"""The picture of a comparison: the error of each way over the steps of the inner loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gimli_core.errors import ArgumentError, explain
from gimli_core.memory.whole_file import check_writable, writing

if TYPE_CHECKING:
    from gimli_core.verification.comparison import Comparison

__all__ = ["save"]


def save(path: Path, comparison: Comparison) -> None:
    """Draw to `path`. The file appears whole or not at all."""
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        expected, do = "the name of a picture", "Choose .png, .pdf or .svg."
        raise ArgumentError(explain("path", expected, f"the ending {path.suffix!r}", do))
    check_writable("path", path)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(row.way for row in comparison.ways):
        rows = [row for row in comparison.of(way) if not row.why and row.error > 0]
        if not rows:
            continue
        steps = [row.steps for row in rows]
        (line,) = axes.plot(steps, [row.error for row in rows], marker="o", label=way)
        if all(row.estimate is not None for row in rows):
            estimates = [row.estimate or 0.0 for row in rows]
            axes.plot(steps, estimates, linestyle=":", color=line.get_color(), label=f"{way}: its own estimate")
    axes.set(xscale="log", yscale="log", xlabel="inner steps J", ylabel=f"error, relative to {comparison.reference}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with writing("path", path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)
