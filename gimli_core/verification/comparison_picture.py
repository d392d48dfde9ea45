"""The picture of a comparison: the error of each way over the steps of the inner loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gimli_core.errors import unexpected
from gimli_core.memory.atomic_file import check_writable, writing

__all__ = ["save"]


Curve = Sequence[tuple[int, float, float | None]]  # J, error, the way's own estimate of it


def save(path: Path, curves: Mapping[str, Curve], reference: str) -> None:
    """Draw each way's errors, relative to `reference`, to `path`. The file appears whole or not at all."""
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        expected, do = "the name of a picture", "Choose .png, .pdf or .svg."
        raise unexpected("path", expected, f"the ending {path.suffix!r}", do)
    check_writable("path", path)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for way, curve in curves.items():
        if not curve:
            continue
        steps = [J for J, _, _ in curve]
        (line,) = axes.plot(steps, [error for _, error, _ in curve], marker="o", label=way)
        estimates = [estimate for _, _, estimate in curve if estimate is not None]
        if estimates:
            axes.plot(steps, estimates, linestyle=":", color=line.get_color(), label=f"{way}: its own estimate")
    axes.set(xscale="log", yscale="log", xlabel="inner steps J", ylabel=f"error, relative to {reference}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with writing("path", path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)
