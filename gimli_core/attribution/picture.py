"""A picture of what helped and hurt: a row for each query, its training examples beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gimli_core.memory.atomic_file import writing

__all__ = ["Example", "is_image", "save"]


class Example(NamedTuple):
    """One example as it is drawn."""

    x: Tensor  # [features]
    title: str
    marked: bool = False  # a label that was planted


def is_image(features: int) -> bool:
    """Whether so many features are drawn as a square."""
    side = math.isqrt(features)
    return side * side == features and side > 3


def save(path: Path, rows: Sequence[tuple[Example, Sequence[Example], Sequence[Example]]], planted: bool) -> None:
    """A row for each (query, what helped it most, what hurt it most). The file appears whole or not at all.

    `planted`: whether some labels are wrong ones that were planted.
    """
    helped, hurt = len(rows[0][1]), len(rows[0][2])
    columns = 1 + helped + hurt
    figure = Figure(figsize=(1.15 * columns, 1.45 * len(rows) + 0.9), layout="constrained")
    figure.suptitle(
        f"Test example | {helped} training examples that helped it most | {hurt} that hurt it most\n"
        "(dL/dw through the whole training"
        + ("; a red title: a wrong label that was planted)" if planted else "; numbers are rows of the data)"),
        fontsize=10,
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (query, good, bad) in zip(grid, rows, strict=True):
        frames = ["black"] + ["tab:green"] * helped + ["tab:red"] * hurt
        for axes, example, frame in zip(line, [query, *good, *bad], frames, strict=True):
            _draw(axes, example, frame)
    with writing("--out", path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)


def _draw(axes: Axes, example: Example, frame: str) -> None:
    """An image where the features make a square, else a line over the features."""
    if is_image(len(example.x)):
        side = math.isqrt(len(example.x))
        axes.imshow(example.x.reshape(side, side).tolist(), cmap="gray_r")
    else:
        axes.plot(example.x.tolist(), color="black", linewidth=0.8)
    axes.set(xticks=[], yticks=[])
    axes.set_title(example.title, fontsize=7, color="red" if example.marked else "black")
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=2)
