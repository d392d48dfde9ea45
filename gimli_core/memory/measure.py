"""What one step of a problem costs: bytes counted at every operation, and seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_losses
from gimli_core.memory.agreed import agreed_costs
from gimli_core.memory.allocator import fresh_seconds, separates
from gimli_core.memory.meters import OBJECT
from gimli_core.memory.pilot import (
    GRADIENT,
    PIECES,
    PILOT,
    RUN,
    RUN_GRAPH,
    RUN_KEPT,
    SWEEP,
    SWEEP_POINT,
    VALIDATE,
    Maker,
    piloted,
)
from gimli_core.memory.schedules.actions import Tier
from gimli_core.memory.schedules.costs import Act, Costs, predict
from gimli_core.memory.storage import Storage
from gimli_core.outlines import ByOutline
from gimli_core.processes.agreement import agreed_all
from gimli_core.record import Point
from gimli_core.trees import nbytes, tensors

__all__ = ["costs_of", "measure"]

# Share of a step's working set that is left free for NOTE [heap holes]: a bound that is the same at every call, so that
# a budget which did once does again. The watch below holds it. What is compiled makes fewer tensors.
ROOM, ROOM_COMPILED = 0.9, 0.45
# Bytes of a step's graph that may lie in blocks which were freed before it and count as taken all the time.
CACHED = 16 * 2**10
# Share of a compiled action's bytes that the heap loses at least: a pilot of two steps hardly loses any yet.
LOST = 0.1


def measure(inputs: Inputs, run: Maker, *, compiled: bool = False, weighed: bool = False) -> Costs:
    """The costs of a problem with 2 or more steps to sweep, from three runs of two steps.

    What stays of a step is its tensors and, where its graph is kept, the graph's nodes and Python's objects, which of a
    small network are the most of it: all blocks that the process has taken meanwhile.

    `compiled`: whether `run` makes its tensors unseen, so that the process is looked at as a whole. `weighed`: whether
    it sweeps several outer losses as one.

    Cost: 84F.
    """
    notes, blocks, seconds, most, (generators, buffers) = piloted(inputs, run, compiled)
    acts = [Act(max(note.peak - note.before, 0), t) for note, t in zip(notes, seconds, strict=True)]
    theta, state = occupies(inputs.values.theta_0), occupies(inputs.values.state_0)
    point = theta + state
    fresh, large = fresh_seconds(), notes[RUN_GRAPH].large
    if compiled:  # all that stays are the tensors of the algorithm itself, and whatever is kept, a step does the same
        phi_loss = sum(max(v.nbytes, 4 * v.numel()) for v in inputs.values.phi_loss.values())  # in float32 at least
        several = outer_losses(inputs)
        rows = 1 if weighed or several is None else several
        accumulators = rows * (occupies(inputs.values.hyper.zeros()) + phi_loss)
        kept = any(w is not None for w in inputs.values.weights[inputs.form.first : -1])
        validation = rows * (theta + phi_loss) if kept and not (weighed and several is not None) else 0
        step, gradient, record, end = OBJECT, theta, point + theta + validation, (1 + rows) * point
        large = record
        for alike in ((RUN, RUN_KEPT, RUN_GRAPH), (SWEEP, SWEEP_POINT)):
            act = Act(max(acts[i].transient for i in alike), min(acts[i].seconds for i in alike))
            acts = [act if i in alike else other for i, other in enumerate(acts)]
    else:
        accumulators, live = notes[0].before, [note.after for note in notes]
        step = live[RUN + 1] - notes[RUN].before
        gradient = live[GRADIENT + 1] - notes[GRADIENT].before
        record = live[RUN_GRAPH] - notes[RUN_GRAPH].before
        end = live[VALIDATE] - notes[VALIDATE].before + point
        nodes = max(0, blocks[RUN_GRAPH].after - blocks[RUN_GRAPH].before - record)
        nodes += CACHED - nodes % CACHED  # a few hundred bytes differ from process to process
        record += nodes
        # An action's own graphs, that of G_j and that of its derivative, have nodes for as long as it lasts.
        acts = [act._replace(transient=act.transient + 2 * nodes) for act in acts]
    point, gradient, record = point + generators + buffers, gradient + generators, record + generators
    transient = max(act.transient for act in acts)
    share = ROOM_COMPILED if compiled else ROOM
    costs = Costs(
        start=accumulators,
        point=point,
        step=step,
        gradient=gradient,
        record=record,
        end=end,
        run=acts[RUN],
        # In a run of two the heap still has room for it; later all that the step makes is mapped, and soon given back.
        run_graph=acts[RUN_GRAPH]._replace(seconds=acts[RUN_GRAPH].seconds + fresh * large),
        run_kept=acts[RUN_KEPT],
        validate=acts[VALIDATE],
        sweep=acts[SWEEP],
        sweep_point=acts[SWEEP_POINT],
        holes=0,
        room=PIECES + round(share * (end + point + transient)) if separates() else 0,
        fresh=fresh,
        write=0.0,
        read=0.0,
        growth=_growth(inputs, weighed),
        ranks=1 if inputs.form.stores_parts is None else inputs.form.stores_parts.size,
    )
    holes = max(round(LOST * transient) if compiled else 0, most - predict(PILOT, costs).peak)
    # s_0 was there before the pilot; the point that the sweep ends at is the caller's only if it is theta_0.
    start = point if inputs.form.first else 0 if inputs.form.warm else state
    return costs._replace(holes=holes, start=accumulators + start)


def _growth(inputs: Inputs, weighed: bool) -> int:
    """Bytes that the sums of indexed entries take in of a step, told by the first one."""
    indexed = inputs.values.indexed
    if not indexed:
        return 0
    several = outer_losses(inputs)
    rows = inputs.values.rows_at(0)
    bytes_of = 0
    for k, v in indexed.items():
        wide = torch.promote_types(v.value.dtype, torch.float32).itemsize
        bytes_of += rows[k].numel() * (8 + wide * v.value[:1].numel())
    return bytes_of if weighed or several is None else several * bytes_of


def costs_of(
    inputs: Inputs, eager: Maker, compiled: Maker | None = None, disk: Path | None = None, *, weighed: bool = False
) -> Costs:
    """The costs of a problem with these shapes, measured when they are first asked for: those of compiled steps where
    they can be seen, and else of eager ones. `weighed`: whether several outer losses are swept as one.
    """
    form, values = inputs.form, inputs.values
    seen = compiled is not None and separates() and inputs.device.type == "cpu"
    remembered: ByOutline[Costs] = form.problem.memo.costs
    weighted = [*form.weighted[form.first : form.first + 2], form.weighted[-1]]
    over = [(ranks.use, ranks.size) for ranks in form.mesh or ()]
    means = (form.second_order, form.curvature, form.warm, form.first > 0, weighted, seen, weighed, over)
    accumulators = [leaf.value for leaf in values.hyper.leaves]

    def wanted() -> Any:  # with batches in it, which no measured run is to stand beside
        return inputs.signature(), accumulators, means, str(disk), torch.get_num_threads()

    measured_before = remembered.get(wanted())
    if agreed_all(form.mesh, measured_before is not None):
        assert measured_before is not None
        return measured_before
    if disk is None:
        run = compiled if seen and compiled is not None else eager
        costs = measure(inputs, run, compiled=seen, weighed=weighed)
    else:  # beside the same bytes as without
        written, read = _disk_seconds(inputs, disk)
        costs = costs_of(inputs, eager, compiled, weighed=weighed)._replace(write=written, read=read)
    costs = agreed_costs(form.mesh, costs)
    remembered.put(wanted(), costs)
    return costs


def occupies(tree: Any) -> int:
    """Bytes of all tensors in a tree, with what they are besides their numbers."""
    return nbytes(tree) + OBJECT * sum(1 for _ in tensors(tree))


def _disk_seconds(inputs: Inputs, disk: Path) -> tuple[float, float]:
    """Seconds to write a point and to read it."""
    storage = Storage(disk)
    try:
        start = time.perf_counter()
        storage.put(Point(0, inputs.values.theta_0, inputs.values.state_0, None), Tier.DISK)
        between = time.perf_counter()
        storage.get(0)
        return between - start, time.perf_counter() - between
    finally:
        storage.close()
