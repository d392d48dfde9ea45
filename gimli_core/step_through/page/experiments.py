"""What a reader may change on a page: further runs of the engine, recorded, and the formulas of a twin in the page.

The engine stays the source. `vary` and `roads` are runs of it; `twin` says in which formulas the page's own script
may follow the reader's hand between them, once it has given the recorded run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gimli_core.arguments.approximation import Approximation, FirstOrder, ThetaOnly, Truncated
from gimli_core.arguments.call import Call
from gimli_core.environment import Environment, discover
from gimli_core.errors import ArgumentError, listing, unexpected
from gimli_core.notation import Tensors, slots
from gimli_core.step_through.page.entries import entry, label
from gimli_core.step_through.page.summaries import number, numbers
from gimli_core.step_through.walk import Walk

__all__ = ["Experiments", "Plane", "record_experiments", "surroundings"]

MOST_ENTRIES = 40  # of theta, in a path that is kept
DRAWN_DIGITS = 4  # significant ones, of what is only drawn


class Plane(NamedTuple):
    """The window of a map of two entries of theta, over which l_0 and L_val are drawn as contours."""

    x: tuple[float, float]
    y: tuple[float, float]
    entries: tuple[str, str] = ("", "")  # by default the first two
    columns: int = 33
    rows: int = 27


@dataclass(frozen=True)
class Experiments:
    """What may be changed.

    Args:
        vary: values to run with again, by the name of one number among phi_opt or phi_loss ("lr", "ε[2]").
        roads: whether to run again without curvature, without the state's adjoint and without the early steps.
        plane: the window of a map, for problems whose run two entries of theta show.
        twin: the formulas of the run as plain numbers, for the page's script; see assets/losses.js.
        fit: theta to what a network says over a grid, for a map of data: {"x", "y", "support", "query"}.
    """

    vary: Mapping[str, Sequence[float]] = field(default_factory=dict)
    roads: bool = False
    plane: Plane | None = None
    twin: Mapping[str, Any] | None = None
    fit: Callable[[Tensors], Mapping[str, Any]] | None = None


def record_experiments(walk: Walk, experiments: Experiments) -> dict[str, Any]:
    """The experiments' runs as plain numbers. Generators and buffers stay as they are.

    Raises:
        ArgumentError: a name in `vary` that is no single number of the call; before any run.
    """
    call = replace(walk.call, resume=None, check=False)
    theta_0 = walk.inputs.values.theta_0
    places = {name: _Place.of(name, call) for name in experiments.vary}
    environment = surroundings(walk)
    half = max(1, walk.inputs.form.steps // 2)
    kept: dict[str, Any] = {"vary": [], "roads": {}, "kept_steps": half, "twin": experiments.twin}
    for name, values in experiments.vary.items():
        runs = []
        for value in values:
            with environment.trial():
                runs.append(_run(places[name].changed(call, float(value)), places[name], experiments.plane is not None))
        kept["vary"].append(
            {
                "name": name,
                "label": places[name].label,
                "index": places[name].position,
                "value": number(places[name].value),
                "at": [float(v) for v in values],
                **{key: [run[key] for run in runs] for key in ("val", "A", "path")},
            }
        )
    # A run that fails is shown up to there: what cannot be recorded beside it is left out.
    for names, approximation in _closed(walk, half) if experiments.roads else ():
        with environment.trial(), suppress(Exception):
            kept["roads"][names] = _without(replace(call, approximation=approximation), theta_0)
    with environment.trial(), suppress(Exception):
        if experiments.plane is not None:
            kept["plane"] = _plane(walk, experiments.plane)
    with environment.trial(), suppress(Exception):
        if experiments.fit is not None:
            kept["fit"] = [dict(experiments.fit(theta)) for theta in _trajectory(call)]
    return kept


def surroundings(walk: Walk) -> Environment:
    """The generators and buffers of a walk's problem, so that a further run can leave them as they were."""
    modules = discover([walk.call.problem.train_loss, walk.call.problem.val_loss])
    return Environment(modules, next(iter(walk.inputs.values.theta_0.values())).device)


class _Place(NamedTuple):
    """One number among the meta-parameters."""

    kind: str  # "phi_opt" or "phi_loss"
    key: str
    position: int  # in a tensor of phi_loss
    value: float
    label: str  # of the leaf, as on the page

    @staticmethod
    def of(name: str, call: Call) -> _Place:
        phi_opt, phi_loss = call.phi_opt or {}, dict(call.phi_loss or {})
        if name in phi_opt and (not isinstance(phi_opt[name], Tensor) or phi_opt[name].ndim == 0):
            return _Place("phi_opt", name, 0, float(phi_opt[name]), f"phi_opt[{name!r}]")
        try:
            key, index = entry(name, phi_loss)
        except (ArgumentError, StopIteration):
            labels = [*phi_opt, *(label(k, 0, t) for k, t in phi_loss.items())]
            do = f"Use one of {listing(labels)}." if labels else "Give phi_opt or phi_loss."
            raise unexpected("vary", "the name of one number among phi_opt or phi_loss", repr(name), do) from None
        return _Place("phi_loss", key, index, phi_loss[key].reshape(-1)[index].item(), f"phi_loss[{key!r}]")

    def changed(self, call: Call, value: float) -> Call:
        """The call with this number in its place."""
        if self.kind == "phi_opt":
            return replace(call, phi_opt={**(call.phi_opt or {}), self.key: value})
        phi_loss = dict(call.phi_loss or {})
        flat = phi_loss[self.key].detach().clone().reshape(-1)
        flat[self.position] = value
        return replace(call, phi_loss={**phi_loss, self.key: flat.reshape(phi_loss[self.key].shape)})

    def of_result(self, result: Any) -> float:
        leaf = result.A_opt[self.key] if self.kind == "phi_opt" else result.A_loss[self.key]
        return float(leaf.reshape(-1)[self.position])


def _run(call: Call, place: _Place, mapped: bool) -> dict[str, Any]:
    """L_val, its gradient and the path on a map; None for a run that fails, as it may at an odd value."""
    try:
        walk = Walk(call)
        path = [_drawn(walk.inputs.values.theta_0)]
        for moment in walk:
            if moment.line == 6 and not moment.replay and mapped:
                path.append(_drawn(moment.values["theta"]))
    except Exception:  # the value is the reader's experiment, not the run
        return {"val": None, "A": None, "path": None}
    A = place.of_result(walk.result)
    return {"val": number(walk.result.val_loss.item()), "A": number(A), "path": path if mapped else None}


def _closed(walk: Walk, half: int) -> Iterator[tuple[str, Approximation]]:
    """Every set of closed roads, by name."""
    roads: dict[str, Approximation] = {"curvature": FirstOrder()}
    if slots(walk.inputs.values.state_0):
        roads["state"] = ThetaOnly()
    if walk.inputs.form.steps > half:
        roads["early"] = Truncated(half)
    for size in range(1, len(roads) + 1):
        for names in combinations(roads, size):
            approximation = roads[names[0]]
            for name in names[1:]:
                approximation = approximation & roads[name]
            yield "+".join(names), approximation


def _without(call: Call, theta_0: Tensors) -> dict[str, Any]:
    """B_j and the meta-gradient of a run with roads closed."""
    walk = Walk(call)
    few = sum(t.numel() for t in theta_0.values()) <= MOST_ENTRIES
    B: dict[int, list[float | str]] = {}
    A_opt: Sequence[Tensor] = ()
    for moment in walk:
        if moment.line == 8:
            A_opt = moment.values["A_opt"]  # the engine adds to these
        elif moment.line in (9, 14) and few:
            B[moment.j] = [x for t in moment.values["B"].values() for x in numbers(t)]
    leaves = walk.inputs.values.hyper.leaves
    A = {leaf.label: value for leaf, value in zip(leaves, A_opt, strict=True)}
    A |= {f"phi_loss[{k!r}]": t for k, t in walk.result.A_loss.items()}
    few_A = {k: numbers(t) for k, t in A.items() if t.numel() <= MOST_ENTRIES}
    return {"A": few_A, "B": [B.get(j) for j in range(walk.inputs.form.steps + 1)]}


def _trajectory(call: Call) -> list[Tensors]:
    walk = Walk(call)
    return [walk.inputs.values.theta_0] + [m.values["theta"] for m in walk if m.line == 6 and not m.replay]


def _plane(walk: Walk, plane: Plane) -> dict[str, Any]:
    """l_0 and L_val on a grid, all other entries as in theta_0; of several tasks what is made of their losses."""
    call, form, values = walk.call, walk.inputs.form, walk.inputs.values
    theta_0, phi_loss = values.theta_0, values.phi_loss
    names = [label(k, i, t) for k, t in theta_0.items() for i in range(t.numel())]
    chosen = [names.index(text) if text else n for n, text in enumerate(plane.entries)]
    places = [entry(names[n], theta_0) for n in chosen]
    batch = call.train_batches(0) if callable(call.train_batches) else call.train_batches[0]
    ell, val = [], []
    with torch.no_grad():
        for y in np.linspace(*plane.y, plane.rows):
            for x in np.linspace(*plane.x, plane.columns):
                theta = {k: t.clone() for k, t in theta_0.items()}
                for (key, index), at in zip(places, (x, y), strict=True):
                    theta[key].view(-1)[index] = float(at)
                ell.append(_rounded(form.scale * form.problem.train_loss(theta, phi_loss, batch).sum().item()))
                val.append(_rounded(form.scale * form.problem.val_loss(theta, phi_loss, call.val_batch).sum().item()))
    return {
        "x": list(plane.x),
        "y": list(plane.y),
        "columns": plane.columns,
        "rows": plane.rows,
        "entries": chosen,
        "labels": [names[n] for n in chosen],
        "ell": ell,
        "val": val,
    }


def _drawn(theta: Tensors) -> list[float | str]:
    return [_rounded(x) for t in theta.values() for x in t.detach().double().reshape(-1).tolist()]


def _rounded(x: float) -> float | str:
    return number(float(f"{x:.{DRAWN_DIGITS}g}"))
