"""Figures of the terms of A: what each step added to the meta-gradient, one panel each or stacked by sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gimli_core.errors import unexpected
from gimli_core.step_through.page.panels import SERIES, figure_of, name_of, new_axes, panels, signed_log
from gimli_core.step_through.page.trace import Trace

__all__ = ["contributions"]


def contributions(trace: Trace, *, stacked: bool = False, ax: Axes | None = None, width: float = 7) -> Figure:
    """What each step added to every entry of A_opt and A_loss that is one number (of others, the norm).

    Args:
        trace: the run.
        stacked: the terms of all meta-parameters on one panel, those below 0 under those above it; by default one
            panel each.
        ax: where to draw them stacked.
        width: of a new figure, in inches.

    Raises:
        ArgumentError: a run without meta-parameters, or that was not swept; `ax` for several panels.
    """
    leaves = [leaf for leaf in trace.data["A"] if any(leaf["inc"])]
    if not leaves:
        do = "Give phi_opt or phi_loss."
        raise unexpected("contributions", "a run with meta-parameters that was swept", "none", do)
    terms = [[_one_number(inc) for inc in leaf["inc"]] for leaf in leaves]
    if stacked:
        return _stacked([name_of(leaf) for leaf in leaves], terms, ax, width)
    if ax is not None and len(leaves) > 1:
        do = "Ask for stacked=True, or leave ax out."
        raise unexpected("ax", "one panel for one meta-parameter", f"{len(leaves)} of them", do)
    figure, every = panels(len(leaves), width) if ax is None else (figure_of(ax), [ax])
    for leaf, added, axes in zip(leaves, terms, every, strict=True):
        axes.bar(range(len(added)), added, color=[SERIES[0] if not v < 0 else SERIES[1] for v in added])
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_ylabel(name_of(leaf), fontsize="small")
        signed_log(axes, [abs(v) for v in added if v and np.isfinite(v)])
    every[-1].set_xlabel("step j")
    every[0].set_title("What each step adds to the meta-gradient")
    return figure


def _one_number(increment: Mapping[str, Any] | None) -> float:
    if increment is None:
        return np.nan
    return float(increment["v"][0] if len(increment.get("v", ())) == 1 else increment["n"])


def _stacked(names: Sequence[str], terms: Sequence[Sequence[float]], ax: Axes | None, width: float) -> Figure:
    axes = new_axes("step j", "term of A", ax, width)
    steps = np.arange(len(terms[0]))
    above, below = np.zeros(len(steps)), np.zeros(len(steps))
    for name, added, colour in zip(names, terms, cycle(SERIES)):
        values = np.nan_to_num(np.array(added))
        base = np.where(values < 0, below, above)
        axes.bar(steps, values, bottom=base, color=colour, label=name)
        above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.legend(frameon=False, fontsize="small")
    axes.set_title("What each step adds to the meta-gradient")
    return figure_of(axes)
