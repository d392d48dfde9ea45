"""The outer loss against gradient-equivalents and against seconds: a line a method."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from tests.benchmarks.bilevel.race import Score

COLUMNS = 4  # of problems, side by side


def draw(scores: dict[str, dict[str, Score]], path: Path) -> None:
    """Medians over the seeds as lines, their ranges as bands. A method looks the same wherever it is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(name for by_method in scores.values() for name in by_method))
    columns, blocks = min(COLUMNS, len(scores)), math.ceil(len(scores) / COLUMNS)
    size = (3.2 * columns, 5.6 * blocks)
    figure, grid = pyplot.subplots(2 * blocks, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.set_visible(False)  # until something is drawn in it
    handles = {}
    for place, (problem, by_method) in enumerate(scores.items()):
        block, column = divmod(place, columns)
        for row, (what, cost) in enumerate(
            (("gradients", lambda s: s.gradients), ("processor seconds", lambda s: statistics.median(s.seconds)))
        ):
            axes = grid[2 * block + row][column]
            axes.set_visible(True)
            for name, score in by_method.items():
                number = methods.index(name)
                x = [cost(score) * k for k in range(len(score.losses[0]))]
                by_step = list(zip(*score.losses, strict=True))
                style = {"color": f"C{number}", "marker": "osv^D<>x*P"[number % 10], "markersize": 3}
                (handles[name],) = axes.plot(x, [statistics.median(values) for values in by_step], label=name, **style)
                axes.fill_between(
                    x, *zip(*((min(v), max(v)) for v in by_step), strict=True), color=f"C{number}", alpha=0.1
                )
            axes.set_xlabel(what, fontsize=8)
            axes.tick_params(labelsize=7)
            if row == 0:
                axes.set_title(problem, fontsize=9)
            if column == 0:
                axes.set_ylabel("outer loss", fontsize=8)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
