"""Figures of a run, with matplotlib: adjoints, growth, a map of tensors and steps, contributions, memory.

Each that has one panel draws into `ax`, where one is given, and gives back its figure, which saves as PDF or SVG.
COLUMN and PAGE are the widths in inches of a paper's column and page.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gimli_core.errors import closest, listing, unexpected
from gimli_core.memory.atomic_file import writing
from gimli_core.step_through.page.panels import MANY, SERIES, figure_of, new_axes, panels, plain
from gimli_core.step_through.page.terms import contributions
from gimli_core.step_through.page.trace import Trace
from gimli_core.step_through.page.worst_steps import growth_of_steps

__all__ = [
    "COLUMN",
    "PAGE",
    "adjoints",
    "contributions",
    "growth",
    "hyperparameters",
    "memory",
    "save_all",
    "tensor_map",
]

COLUMN, PAGE = 3.25, 6.75

FORWARD, BACKWARD, CURVATURE, GRAPHS = "#0b7a75", "#7a3fb5", "#c4510f", "#1f63b8"


def adjoints(trace: Trace, *, ax: Axes | None = None, beside: Trace | None = None, width: float = 7) -> Figure:
    """‖B_j‖ over j, with the two terms of line 14; of a second run, such as the exact one beside an ablation, ‖B_j‖.

    Args:
        trace: the run.
        ax: where to draw; by default a figure of its own.
        beside: another run of as many steps, drawn dashed under its title.
        width: of a new figure, in inches.

    >>> import gimli_core as gimli
    >>> from gimli_core.step_through.page import figures
    >>> figures.adjoints(gimli.lessons.exploding().page()).axes[0].get_xlabel()
    'step j'
    """
    axes = new_axes("step j", "norm", ax, width)
    drawn = [
        (trace, "B", r"$\Vert B_j\Vert$", BACKWARD, "-"),
        (trace, "direct", "through the optimizer", FORWARD, "-"),
        (trace, "curvature", "through the curvature", CURVATURE, "-"),
    ]
    if beside is not None:
        drawn.append((beside, "B", rf"$\Vert B_j\Vert$, {plain(beside.title)}", "0.35", "--"))
    for one, name, label, colour, style in drawn:
        norms = _norms(one, name)
        marker = "." if len(norms) < 60 else None
        axes.plot(list(norms), list(norms.values()), style, label=label, color=colour, marker=marker)
    values = [norm for one in (trace, beside) if one is not None for norm in _norms(one, "B").values()]
    if values and min(values) > 0 and max(values) / min(values) > MANY:
        axes.set_yscale("log")
    axes.legend(frameon=False)
    axes.set_title("The adjoint, as the sweep built it from right to left")
    return figure_of(axes)


def growth(trace: Trace, *, ax: Axes | None = None, width: float = 7) -> Figure:
    """‖B_j‖/‖B_{j+1}‖ of every step: what the step multiplies the adjoint by on its way back; 1 is marked.

    >>> import gimli_core as gimli
    >>> from gimli_core.step_through.page import figures
    >>> len(figures.growth(gimli.lessons.quadratic().page()).axes[0].patches)
    8
    """
    axes = new_axes("step j", r"$\Vert B_j\Vert\,/\,\Vert B_{j+1}\Vert$", ax, width)
    factors = growth_of_steps(trace)
    finite = {j: factor for j, factor in factors.items() if np.isfinite(factor) and factor > 0}
    axes.bar(list(finite), list(finite.values()), color=[CURVATURE if f > 1 else GRAPHS for f in finite.values()])
    axes.axhline(1, color="0.6", linewidth=0.8)
    if finite and max(finite.values()) / min(finite.values()) > MANY:
        axes.set_yscale("log")
    axes.set_title("What each step multiplies the adjoint by")
    return figure_of(axes)


def tensor_map(trace: Trace, quantity: str = "B", *, ax: Axes | None = None, width: float = 7) -> Figure:
    """log₁₀ of a quantity's norm for each tensor and step, as a map; white where it is 0 or was not kept.

    Args:
        trace: the run.
        quantity: "B", "V", "G", or "S.exp_avg" for a slot of the state: a key of `trace.data["q"]`.
        ax: where to draw; by default a figure of its own.
        width: of a new figure, in inches.

    Raises:
        ArgumentError: a quantity that the run has not.
    """
    kept = trace.data["q"].get(quantity)
    if kept is None:
        quantities = list(trace.data["q"])
        do = f"Use one of them.{closest(quantity, quantities)}"
        raise unexpected("quantity", f"one of {listing(quantities, len(quantities))}", repr(quantity), do)
    names = [tensor["name"] for tensor in trace.data["tensors"]]
    norms = np.full((len(names), max(kept["cells"], default=0) + 1), np.nan)
    for j, cells in kept["cells"].items():
        for i, cell in enumerate(cells):
            norms[i, j] = float(cell.get("n", "nan"))
    logs = np.log10(norms, out=np.full_like(norms, np.nan), where=(norms > 0) & np.isfinite(norms))
    axes = new_axes("step j", "", ax, width)
    image = axes.imshow(logs, aspect="auto", interpolation="nearest", cmap="viridis")
    axes.set_yticks(range(len(names)), [plain(name) for name in names], fontsize="small")
    label = quantity.replace("theta", r"\theta").replace("_", r"\_")
    figure_of(axes).colorbar(image, ax=axes, label=rf"$\log_{{10}}\Vert {label}\Vert$")
    return figure_of(axes)


def hyperparameters(history: Sequence[Mapping[str, Any]], *, ax: Axes | None = None, width: float = 7) -> Figure:
    """Hyperparameters over outer steps.

    Args:
        history: one dict `{name: number}` an outer step, as you changed them with each meta-gradient.
        ax: where to draw all of them; by default a figure with a panel each.
        width: of a new figure, in inches.

    >>> from gimli_core.step_through.page import figures
    >>> len(figures.hyperparameters([{"lr": 0.1}, {"lr": 0.2}]).axes)
    1
    """
    names = list(history[0]) if history else []
    if not names:
        do = "Append a dict after each outer step."
        raise unexpected("history", "a list of dicts {name: number}", "an empty one", do)
    figure, every = panels(len(names), width) if ax is None else (figure_of(ax), [ax] * len(names))
    for name, axes, colour in zip(names, every, cycle(SERIES if ax is not None else (FORWARD,))):
        values = [float(step[name]) for step in history]
        axes.plot(values, color=colour, marker="." if len(history) < 60 else None, label=plain(name))
        axes.set_ylabel("" if ax is not None and len(names) > 1 else plain(name))
    if ax is not None and len(names) > 1:
        ax.legend(frameon=False, fontsize="small")
    every[-1].set_xlabel("outer step")
    return figure


def memory(trace: Trace, *, ax: Axes | None = None, width: float = 7) -> Figure:
    """Memory of the process over time, its peak marked, above what the schedule holds; on `ax` the first alone."""
    events = trace.data["events"]
    seconds = np.cumsum(events["us"]) / 1e6
    if ax is None:
        figure = Figure(figsize=(width, width * 0.63), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
    else:
        figure, above, below = figure_of(ax), ax, None
    used = np.array(events["memory"]) / 2**20
    above.plot(seconds, used, color=BACKWARD)
    if used.size:
        peak = int(used.argmax())
        above.plot(seconds[peak], used[peak], "o", color=CURVATURE)
        right = seconds[peak] > seconds[-1] / 2  # the words stay within the frame
        above.annotate(
            f"peak {used[peak]:.0f} MiB",
            (seconds[peak], used[peak]),
            textcoords="offset points",
            xytext=(-6 if right else 6, -12),
            ha="right" if right else "left",
        )
    above.set_ylabel("memory of the process, MiB")
    above.set_title("Memory over time")
    for kind, label, colour in (("point", "states stored", FORWARD), ("graph", "graphs kept", GRAPHS)):
        kept = np.zeros(len(seconds))
        for span in trace.data["held"]:
            if span[0] == kind:
                kept[span[2] : span[3]] += 1
        if below is not None:
            below.step(seconds, kept, where="post", label=label, color=colour)
    if below is not None:
        below.legend(frameon=False)
        below.set_ylabel("kept")
    (above if below is None else below).set_xlabel("seconds in the engine")
    for axes in figure.axes if ax is None else [ax]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_all(trace: Trace, directory: str | os.PathLike[str]) -> list[Path]:
    """Every figure of a run, as PNG and as PDF; ArgumentError where the directory cannot be written."""
    made = {"adjoints": adjoints(trace), "growth": growth(trace), "memory": memory(trace)}
    if "B" in trace.data["q"]:
        made["tensors"] = tensor_map(trace)
    if any(any(leaf["inc"]) for leaf in trace.data["A"]):
        made["contributions"] = contributions(trace)
        made["stacked"] = contributions(trace, stacked=True)
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        expected = "a directory that can be written"
        raise unexpected(f"figures in {str(directory)!r}", expected, str(error), "Give another.") from None
    paths = []
    for name, figure in made.items():
        for kind in ("png", "pdf"):
            paths.append(Path(directory) / f"{name}.{kind}")
            with writing("figure", paths[-1]) as file:
                figure.savefig(file, format=kind, dpi=150)
    return paths


def _norms(trace: Trace, name: str) -> dict[int, float]:
    by_step = trace.data["q"].get(name, {"norm": {}})["norm"]
    return {j: float(by_step[j]) for j in sorted(by_step)}
