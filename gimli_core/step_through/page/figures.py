"""Figures of a run, with matplotlib: adjoints, contributions, hyperparameters over outer steps, memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gimli_core.errors import unexpected
from gimli_core.memory.whole_file import writing
from gimli_core.step_through.page.trace import Trace

__all__ = ["adjoints", "contributions", "hyperparameters", "memory", "save_all"]

FORWARD, BACKWARD, CURVATURE, GRAPHS = "#0b7a75", "#7a3fb5", "#c4510f", "#1f63b8"


def adjoints(trace: Trace) -> Figure:
    """‖B_j‖ over j, with the two terms of line 14.

    >>> import gimli_core as gimli
    >>> from gimli_core.step_through.page import figures
    >>> figures.adjoints(gimli.lessons.exploding().page()).axes[0].get_xlabel()
    'step j'
    """
    figure, axes = _axes("step j", "norm")
    for name, label, colour in (
        ("B", "B_j", BACKWARD),
        ("direct", "optimizer term", FORWARD),
        ("curvature", "curvature term", CURVATURE),
    ):
        by_step = trace.data["q"].get(name, {"norm": {}})["norm"]
        steps = sorted(by_step)
        axes.plot(
            steps,
            [float(by_step[j]) for j in steps],
            label=label,
            color=colour,
            marker="." if len(steps) < 60 else None,
        )
    values = [float(v) for v in trace.data["q"].get("B", {"norm": {}})["norm"].values()]
    if values and min(values) > 0 and max(values) / min(values) > 300:
        axes.set_yscale("log")
    axes.legend(frameon=False)
    axes.set_title("The adjoint, as the sweep built it from right to left")
    return figure


def contributions(trace: Trace) -> Figure:
    """What each step added to every entry of A_opt and A_loss that is one number (of others, the norm)."""
    leaves = [leaf for leaf in trace.data["A"] if any(leaf["inc"])]
    if not leaves:
        raise unexpected(
            "contributions", "a run with meta-parameters that was swept", "none", "Give phi_opt or phi_loss."
        )
    figure = Figure(figsize=(7, 2.2 * len(leaves)), layout="constrained")
    every = figure.subplots(len(leaves), 1, sharex=True, squeeze=False)[:, 0]
    for leaf, axes in zip(leaves, every, strict=True):
        added = [
            np.nan if inc is None else float(inc["v"][0] if len(inc.get("v", ())) == 1 else inc["n"])
            for inc in leaf["inc"]
        ]
        axes.bar(range(len(added)), added, color=[CURVATURE if not v < 0 else GRAPHS for v in added])
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_ylabel(leaf["label"].replace("$", r"\$"), fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    every[-1].set_xlabel("step j")
    every[0].set_title("What each step adds to the meta-gradient")
    return figure


def hyperparameters(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Hyperparameters over outer steps.

    Args:
        history: one dict `{name: number}` an outer step, as you changed them with each meta-gradient.

    >>> from gimli_core.step_through.page import figures
    >>> len(figures.hyperparameters([{"lr": 0.1}, {"lr": 0.2}]).axes)
    1
    """
    names = list(history[0]) if history else []
    if not names:
        raise unexpected(
            "history", "a list of dicts {name: number}", "an empty one", "Append a dict after each outer step."
        )
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    every = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for name, axes in zip(names, every, strict=True):
        axes.plot([float(step[name]) for step in history], color=FORWARD, marker="." if len(history) < 60 else None)
        axes.set_ylabel(name.replace("$", r"\$"))
        axes.spines[["top", "right"]].set_visible(False)
    every[-1].set_xlabel("outer step")
    return figure


def memory(trace: Trace) -> Figure:
    """Memory of the process over time, its peak marked, above what the schedule holds."""
    events = trace.data["events"]
    seconds = np.cumsum(events["us"]) / 1e6
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    used = np.array(events["memory"]) / 2**20
    above.plot(seconds, used, color=BACKWARD)
    if used.size:
        peak = int(used.argmax())
        above.plot(seconds[peak], used[peak], "o", color=CURVATURE)
        above.annotate(
            f"peak {used[peak]:.0f} MiB", (seconds[peak], used[peak]), textcoords="offset points", xytext=(6, -12)
        )
    above.set_ylabel("MiB")
    above.set_title("Memory over time")
    for kind, label, colour in (("point", "states stored", FORWARD), ("graph", "graphs kept", GRAPHS)):
        held = np.zeros(len(seconds))
        for span in trace.data["held"]:
            if span[0] == kind:
                held[span[2] : span[3]] += 1
        below.step(seconds, held, where="post", label=label, color=colour)
    below.legend(frameon=False)
    below.set_ylabel("kept")
    below.set_xlabel("seconds in the engine")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_all(trace: Trace, directory: str | os.PathLike[str]) -> list[Path]:
    """Every figure of a run as PNG; ArgumentError where the directory cannot be written."""
    made = {"adjoints": adjoints(trace), "memory": memory(trace)}
    if any(any(leaf["inc"]) for leaf in trace.data["A"]):
        made["contributions"] = contributions(trace)
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise unexpected(
            f"figures in {str(directory)!r}", "a directory that can be written", str(error), "Give another."
        ) from None
    paths = [Path(directory) / f"{name}.png" for name in made]
    for path, figure in zip(paths, made.values(), strict=True):
        with writing("figure", path) as file:
            figure.savefig(file, format="png", dpi=150)
    return paths


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
