"""The curves of an outer loop's log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gimli_core.memory.atomic_file import writing
from gimli_core.outer_loop.log import numbers_in

__all__ = ["plot"]

APART = ("seconds",)  # of no interest in a picture


def plot(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw a log: one panel a quantity, over outer steps. The file appears whole or not at all. Needs matplotlib."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        for name, value in numbers_in(record):
            panel = name if name.startswith("evaluation/") else name.split("/")[0]
            if panel not in APART:
                curves.setdefault(panel, {}).setdefault(name, []).append((record["step"], value))
    rows = max(1, -(-len(curves) // 2))
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flat
    for panel, ax in zip(curves, axes, strict=False):
        for name, points in curves[panel].items():
            ax.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
        ax.set(title=panel, xlabel="outer step")
        ax.grid(alpha=0.3)
        if len(curves[panel]) > 1:
            ax.legend(fontsize="small")
    for ax in figure.axes[len(curves) :]:
        ax.set_visible(False)
    with writing("path", path) as file:
        figure.savefig(file, format=Path(path).suffix.lstrip(".").lower() or "png", dpi=120)
