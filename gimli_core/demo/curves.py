"""Learning curves side by side: one panel an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from gimli_core.memory.atomic_file import writing

__all__ = ["save"]


def save(path: Path, panels: Mapping[str, Mapping[str, Tensor]], learned_until: int) -> None:
    """`{architecture: {rule: [runs, steps]}}`, means and ranges over runs. The file appears whole or not at all.

    Args:
        learned_until: steps of the runs that the rules were made for; a line marks them.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (architecture, rules) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axes.set(title=architecture, xlabel="inner step", ylabel="training loss", yscale="log")
        axes.axvline(learned_until, color="gray", linestyle=":", linewidth=1)
        for name, losses in rules.items():
            steps = range(losses.shape[1])
            (line,) = axes.plot(steps, losses.mean(0).tolist(), label=name)
            axes.fill_between(
                steps, losses.amin(0).tolist(), losses.amax(0).tolist(), alpha=0.2, color=line.get_color()
            )
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    with writing("--out", path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)
