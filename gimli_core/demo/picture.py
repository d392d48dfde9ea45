"""The demo's picture: what was learned, outer step by outer step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gimli_core.demo.learning import ADAM_BETAS, START_L2, START_LR, Hyperparameters
from gimli_core.errors import unexpected
from gimli_core.memory.atomic_file import check_writable, writing

__all__ = ["check_path", "save"]


def check_path(path: Path) -> None:
    """Raise `ArgumentError` unless a picture can be saved at `path`: before the work, not after it."""
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        do = "Choose .png, .pdf or .svg."
        raise unexpected(f"--out {path}", "the name of a picture", f"the ending {path.suffix!r}", do)
    check_writable("--out", path)


def save(
    path: Path, losses: Sequence[float], learned: Sequence[Hyperparameters], grid_loss: float, grid_lr: float
) -> None:
    """Four panels over outer steps. The file appears whole or not at all."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    loss, rates, betas, penalties = figure.subplots(2, 2).flat
    for axes, title in (
        (loss, "Validation loss met"),
        (rates, "Learning rates"),
        (betas, "Betas"),
        (penalties, "L2 penalties"),
    ):
        axes.set(title=title, xlabel="outer step", yscale="log")
        axes.grid(alpha=0.3)
    loss.plot(range(1, len(losses) + 1), losses, label="learned so far")
    loss.axhline(grid_loss, color="gray", linestyle="--", label="best fixed learning rate")
    for name in learned[0].lr:
        _curve(rates, name, START_LR, [values.lr[name].item() for values in learned])
        _curve(penalties, name, START_L2, [values.log_l2[name].exp().item() for values in learned])
    rates.axhline(grid_lr, color="gray", linestyle="--", label="best fixed learning rate")
    _curve(betas, "1 - beta1", 1 - ADAM_BETAS[0], [1 - values.beta1.item() for values in learned])
    _curve(betas, "1 - beta2", 1 - ADAM_BETAS[1], [1 - values.beta2.item() for values in learned])
    for axes in (loss, rates, betas, penalties):
        axes.legend(fontsize="small")
    with writing("--out", path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)


def _curve(axes: Axes, label: str, start: float, values: Sequence[float]) -> None:
    axes.plot(range(len(values) + 1), [start, *values], label=label)
