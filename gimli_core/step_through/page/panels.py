"""What the figures share: axes in the house's form, names in the paper's letters, scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["MANY", "SERIES", "figure_of", "name_of", "new_axes", "panels", "plain", "signed_log"]

SERIES = ("#c4510f", "#1f63b8", "#0b7a75", "#7a3fb5", "#7d6200", "#47566b")
MANY = 300  # the ratio of the largest to the smallest from which a scale is logarithmic


def panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, 2.2 * count), layout="constrained")
    every = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(every)


def new_axes(x: str, y: str, ax: Axes | None, width: float) -> Axes:
    axes = Figure(figsize=(width, width * 0.51), layout="constrained").subplots() if ax is None else ax
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def name_of(leaf: Mapping[str, Any]) -> str:
    """A_lr of phi_opt['lr'], in the paper's letters; another label as it stands."""
    inside = leaf["label"].partition("['")[2].removesuffix("']")
    return rf"$A_{{\mathrm{{{inside}}}}}$" if inside.isidentifier() and "_" not in inside else plain(leaf["label"])


def plain(text: str) -> str:
    """Text in which matplotlib reads no formula."""
    return text.replace("$", r"\$")


def signed_log(axes: Axes, sizes: Sequence[float]) -> None:
    """A signed logarithmic scale where sizes differ by more than MANY: a factor is as long on both sides of 0. Twelve
    decades are drawn at most."""
    if not sizes or max(sizes) / min(sizes) <= MANY:
        return
    least = max(min(sizes), max(sizes) * 1e-12)
    axes.set_yscale("symlog", linthresh=least)
    top, bottom = int(np.floor(np.log10(max(sizes)))), int(np.ceil(np.log10(least)))
    ticks = sorted({10.0**top, 10.0 ** ((top + bottom + 1) // 2)})
    axes.set_yticks([*(-tick for tick in reversed(ticks)), 0, *ticks])
