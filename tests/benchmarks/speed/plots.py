"""How time grows with J, with tasks and with width: a log-log plot each, with the slope of every engine."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.benchmarks.history import Run
from tests.benchmarks.speed.engines import ENGINES
from tests.benchmarks.speed.worker import Question, together

# The workload and its sizes along each axis; the slope is fitted to the upper half, where fixed costs have gone.
AXES = {
    "steps": ("tiny", (5, 10, 20, 50, 100, 200)),
    "tasks": ("sinusoid", (1, 5, 25, 100, 400)),
    "width": ("mnist", (64, 128, 256, 512, 1024)),
}
FIXED = {"steps": {}, "tasks": {}, "width": {"steps": 10}}


def slope(sizes: list[int], seconds: list[float]) -> float:
    """d log(seconds) / d log(size), fitted to the upper half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def draw(axis: str, template: Question, names: list[str], repeats: int, folder: Path, run: Run) -> None:
    """Measure along one axis, print the figures and the slopes, and write the plot AXIS.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    workload, sizes = AXES[axis]
    found: dict[str, dict[int, float]] = {e: {} for e in names}
    for size in sizes:
        question = replace(template, workload=workload, sizes={**FIXED[axis], axis: size})
        with together([replace(question, engine=e) for e in names]) as workers:
            for e, taken in workers.turns(repeats)[0].items():
                found[e][size] = statistics.median(taken)
                run.note(f"{axis} = {size}/{e}/time", taken, "s")
    figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    for e, seconds in found.items():
        if len(seconds) < 2:
            continue
        x, y = list(seconds), list(seconds.values())
        print(f"{axis:6} {e:16} slope {slope(x, y):5.2f}   " + "  ".join(f"{n}: {s:.5f}" for n, s in seconds.items()))
        axes.loglog(x, y, "o-", label=f"{ENGINES[e][0]}: slope {slope(x, y):.2f}")
    axes.set(xlabel="J" if axis == "steps" else axis, ylabel="seconds", title=f"{workload}: time against {axis}")
    axes.legend(fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{axis}.png", dpi=120)
    pyplot.close(figure)
