"""Where an adjoint grows most on its way back: a run's worst steps, with their cause and their place on the page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gimli_core.step_through.page.trace import Trace

__all__ = ["WorstStep", "growth_of_steps", "worst_steps"]


class WorstStep(NamedTuple):
    """One step of the sweep.

    `factor` is ‖B_j‖/‖B_{j+1}‖; `cause` the larger of line 14's two terms, "optimizer" or "curvature"; `tensor` the one
    with the largest part of B_j (empty where parts were not kept); `address` what leads to line 14 of it on the page.
    """

    j: int
    factor: float
    cause: str
    tensor: str
    address: str


def growth_of_steps(trace: Trace) -> dict[int, float]:
    """‖B_j‖/‖B_{j+1}‖ by j; infinite, or not a number, where B_{j+1} is 0."""
    norms = {j: float(norm) for j, norm in trace.data["q"].get("B", {"norm": {}})["norm"].items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        return {j: float(np.float64(norms[j]) / np.float64(norms[j + 1])) for j in sorted(norms) if j + 1 in norms}


def worst_steps(trace: Trace, most: int = 5) -> list[WorstStep]:
    """The steps that multiply ‖B‖ by most, the worst first. One that breaks a finite B counts as infinite; those after
    it in the sweep, and those at which B stays 0, multiply nothing and are left out.

    >>> import gimli_core as gimli
    >>> from gimli_core.step_through.page.worst_steps import worst_steps
    >>> worst_steps(gimli.lessons.exploding().page())[0].address[:10]
    '#line=14&j'
    """
    norms = {j: float(norm) for j, norm in trace.data["q"].get("B", {"norm": {}})["norm"].items()}
    factors = {
        j: factor if np.isfinite(norms[j]) else np.inf
        for j, factor in growth_of_steps(trace).items()
        if np.isfinite(norms[j + 1]) and (norms[j] != 0 or norms[j + 1] != 0)
    }
    order = sorted(factors, key=lambda j: -factors[j])
    return [_told(trace, j, factors[j]) for j in order[:most]]


def _told(trace: Trace, j: int, factor: float) -> WorstStep:
    kept = trace.data["q"]
    direct, curvature = (float(kept[name]["norm"][j]) for name in ("direct", "curvature"))
    cells = kept["B"]["cells"][j]
    parts = [float(cell.get("n", "nan")) for cell in cells]
    tensor = "" if not parts or np.isnan(parts).all() else trace.data["tensors"][int(np.nanargmax(parts))]["name"]
    return WorstStep(j, factor, "curvature" if curvature > direct else "optimizer", tensor, f"#line=14&j={j}")
