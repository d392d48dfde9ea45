"""The outer loss against gradient-equivalents and against seconds: a column a problem, a line a method."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.benchmarks.bilevel.race import Score


def draw(scores: dict[str, dict[str, Score]], path: Path) -> None:
    """Medians over the seeds as lines, their ranges as bands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (2.9 * len(scores), 6.0)
    figure, grid = pyplot.subplots(2, len(scores), figsize=size, squeeze=False, layout="constrained")
    for column, (problem, by_method) in enumerate(scores.items()):
        for row, (what, cost) in enumerate(
            (("gradients", lambda s: s.gradients), ("processor seconds", lambda s: statistics.median(s.seconds)))
        ):
            axes = grid[row][column]
            for number, (name, score) in enumerate(by_method.items()):
                x = [cost(score) * k for k in range(len(score.losses[0]))]
                by_step = list(zip(*score.losses, strict=True))
                style = {"color": f"C{number}", "marker": "osv^D<>x*P"[number % 10], "markersize": 3}
                axes.plot(x, [statistics.median(values) for values in by_step], label=name, **style)
                axes.fill_between(
                    x, *zip(*((min(v), max(v)) for v in by_step), strict=True), color=f"C{number}", alpha=0.1
                )
            axes.set_xlabel(what, fontsize=8)
            axes.tick_params(labelsize=7)
            if row == 0:
                axes.set_title(problem, fontsize=9)
        grid[0][0].set_ylabel("outer loss", fontsize=8)
        grid[1][0].set_ylabel("outer loss", fontsize=8)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(scores), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
