"""What each memory schedule would cost here, before paying for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.call import Call
from gimli_core.compiled.choice import chosen
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.errors import unexpected
from gimli_core.memory.measure import costs_of
from gimli_core.memory.schedules.binomial import advances
from gimli_core.memory.schedules.budget import Budget, choose, enough, estimate, least
from gimli_core.memory.schedules.checkpoint import Checkpoint
from gimli_core.memory.schedules.costs import Costs, holes
from gimli_core.memory.schedules.sizes import show_size
from gimli_core.memory.schedules.store_states import StoreStates
from gimli_core.notation import State
from gimli_core.problem import Problem
from gimli_core.processes.mesh import check_mesh
from gimli_core.runs.apart import apart_if_needed
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.runs.make_run import checked, makers
from gimli_core.runs.over_ranks import chunks_of
from gimli_core.runs.wants import Wants
from gimli_core.transforms.tasks import Tasks

__all__ = ["Plan", "Row", "plan"]


class Row(NamedTuple):
    """One schedule and its predicted cost."""

    name: str
    schedule: Checkpoint
    peak: int  # bytes above what the process holds when the run starts
    seconds: float
    replays: int  # steps run forwards more often than RetainGraphs and StoreStates do

    @property
    def picked(self) -> str:
        """What a budget picks; nothing for a schedule that was named."""
        if not self.name.startswith("Budget"):
            return ""
        return f"<- Checkpoint({self.schedule.snapshots}, graphs={self.schedule.graphs})"


@dataclass(frozen=True)
class Plan:
    """Predicted peak and time of every kind of schedule; printing it gives a table and a picture.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> p = gimli.plan(problem, theta_0, lambda j: one, one, steps=20)
    >>> min(row.peak for row in p.rows) <= p.least
    True
    """

    rows: tuple[Row, ...]
    costs: Costs
    steps: int
    problem: str = ""  # its sizes and its rule, in words

    @property
    def least(self) -> int:
        """The smallest budget that does, in bytes."""
        return least(self.steps, self.costs)

    @property
    def margin(self) -> int:
        """Bytes above a row's peak that a budget for its schedule has to have besides: what the heap may lose more
        than it is expected to.
        """
        return self.costs.room - holes(self.costs, self.steps)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [self.problem] if self.problem else []
        lines.append(
            f"{self.steps} steps; a state takes {show_size(self.costs.point)}, a graph {show_size(self.costs.record)}"
        )
        lines.append(f"{'schedule':{width}}{'peak':>12}{'time':>11}{'replays':>9}  a budget picks")
        lines += [
            f"{r.name:{width}}{show_size(r.peak):>12}{r.seconds:>9.3g} s{r.replays:>9}  {r.picked}".rstrip()
            for r in self.rows
        ]
        if self.margin:
            lines.append(
                f"A peak is what is expected; a budget keeps {show_size(self.margin)} above it free, for what the heap "
                f"may lose. The least budget is {enough(self.least)}."
            )
        return "\n".join([*lines, "", picture(self.rows)])


def picture(rows: Sequence[Row], columns: int = 24) -> str:
    """Peak and time of each row as two bars beside its name, as text; both on a logarithmic scale, since one schedule
    may take a hundred times another's. A factor is as long wherever it stands."""
    names = max(len(row.name) for row in rows)
    peaks, times = [max(r.peak, 1) for r in rows], [max(r.seconds, 1e-9) for r in rows]

    def bar(value: float, values: Sequence[float]) -> str:
        span = log(max(values) / min(values))
        return "#" * (1 + round((columns - 1) * log(value / min(values)) / span) if span else columns)

    heads = (f"peak, x{max(peaks) / min(peaks):.3g} from # to full", f"time, x{max(times) / min(times):.3g}")
    lines = [f"{'':{names}}  {heads[0]:{columns}}  {heads[1]}"]
    lines += [
        f"{row.name:{names}}  {bar(peak, peaks):{columns}}  {bar(seconds, times)}".rstrip()
        for row, peak, seconds in zip(rows, peaks, times, strict=True)
    ]
    return "\n".join(lines)


def plan(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Any] | None = None,
    state_0: State | None = None,
    val_weights: Sequence[float] | Tensor | None = None,
    approximation: Approximation | None = None,
    second_order: str = "auto",
    tasks: int | Tasks | None = None,
    check: bool = True,
    micro_batches: int | None = None,
    mesh: DeviceMesh | str | None = None,
    compile: bool = False,
) -> Plan:
    """What each memory schedule would cost on this problem: predicted peak and time.

    Two steps are run and measured; nothing else is.

    Args: as in `meta_gradient`, but for
        compile: True compiles the steps first, and measures those (on a processor and glibc; elsewhere compiled
            tensors cannot be seen, and eager steps stand for them). The rows are those of runs with `memory=`.
        tasks: of a meta-batch in chunks, one chunk's costs.
        mesh: of tasks over ranks likewise; of one inner loop over ranks what each of them needs, the most of all.

    Returns:
        Plan: `.rows` with `.name`, `.schedule`, `.peak` in bytes above what the process holds, `.seconds` and
        `.replays`; `.margin`, what a budget leaves free above a row's peak (2 MiB and a share of a step, on glibc);
        `.least`, the smallest budget; printing it gives a table and a picture of peak against time.

    Raises:
        ArgumentError: fewer than 2 steps, for which every schedule costs the same; and what `meta_gradient` raises.

    Cost: about 85F, once for a problem and its shapes, and the memory of one step with its graph.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> p = gimli.plan(problem, {"w": torch.zeros(2)}, lambda j: torch.ones(2), torch.ones(2), steps=100)
    >>> next(row.replays for row in p.rows if row.name == "Checkpoint(10)")
    123
    """
    if not isinstance(compile, bool):
        do = "The rows are those of single steps, eager or compiled."
        raise unexpected("compile", "True or False", repr(compile), do)
    call = Call(
        problem,
        theta_0,
        train_batches,
        val_batch,
        steps,
        phi_opt,
        phi_loss,
        state_0,
        val_weights,
        approximation=approximation,
        second_order=second_order,
        tasks=tasks,
        check=check,
        micro_batches=micro_batches,
        mesh=check_mesh(mesh),
    )
    of_tasks = call.mesh is not None and call.mesh.tasks is not None
    call = (chunks_of(call, call.mesh) if of_tasks else call.parts())[0]
    J, costs = apart_if_needed(call, lambda: _measured(call, compile))
    named = {"RetainGraphs()": Checkpoint(1, graphs=J), "StoreStates()": Checkpoint(J)}
    named |= {f"Checkpoint({S})": Checkpoint(S) for S in (50, 20, 10, 5, 2) if S < J}
    smallest, largest = least(J, costs), estimate(named["RetainGraphs()"], J, costs)[0]
    for i in range(4):  # budgets between the least and all graphs, each by the same factor
        size = enough(smallest * (largest / smallest) ** (i / 3))
        named[f"Budget({size!r})"] = choose(Budget(size), J, costs)
    rows = []
    for name, schedule in named.items():
        peak, seconds = estimate(schedule, J, costs)
        peak += holes(costs, J) - costs.room  # what is expected, where a budget has to leave room
        block = min(schedule.graphs, J)
        rows.append(Row(name, schedule, peak, seconds, advances(J, schedule.snapshots, block) - (J - block)))
    elements = sum(t.numel() for t in call.theta_0.values())
    described = f"{elements:,} parameters in {len(call.theta_0)} tensors, {type(problem.optimizer).__name__}"
    return Plan(tuple(sorted(rows, key=lambda row: row.peak)), costs, J, described)


def _measured(call: Call, compile: bool) -> tuple[int, Costs]:
    """(the steps that are swept, what the actions of a run cost)."""
    inputs = checked(call, StoreStates(), Wants())
    J = inputs.form.steps - inputs.form.first
    if J < 2:
        do = "With fewer there is nothing to choose."
        raise unexpected("steps", "at least 2 that are swept", str(J), do)
    compiled = chosen(inputs, compile, unscheduled=False)
    return J, costs_of(inputs, *makers(compiled if isinstance(compiled, CompiledSteps) else EagerSteps()))
