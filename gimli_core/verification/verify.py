"""The engine, or a claim from elsewhere, against every oracle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.call import Call
from gimli_core.arguments.form import Form
from gimli_core.environment import Environment
from gimli_core.errors import listing, unexpected
from gimli_core.memory import Schedule
from gimli_core.meta_parameters.marks import plain_dicts
from gimli_core.notation import State
from gimli_core.problem import Problem
from gimli_core.processes.agreement import together
from gimli_core.processes.mesh import Mesh, check_mesh
from gimli_core.results import MetaGradient
from gimli_core.runs.gathered import gathered
from gimli_core.runs.make_run import make_run
from gimli_core.runs.run import drain
from gimli_core.runs.wants import Wants
from gimli_core.transforms.nested import Places, flat_entries
from gimli_core.transforms.tasks import Tasks, check_tasks
from gimli_core.verification.against import against
from gimli_core.verification.answers import asked_of_oracles
from gimli_core.verification.bounds import Bounds
from gimli_core.verification.check import Check, Verdict
from gimli_core.verification.claims import entries_of
from gimli_core.verification.localise import Finding, first_disagreement
from gimli_core.verification.oracles.autograd_through_the_graph import draws
from gimli_core.verification.precision import lowest_dtype, name_of, precise, summed_in
from gimli_core.verification.question import RESULTS, VAL_LOSS, Entries, Question, flatten, label, same_randomness
from gimli_core.verification.report import Report
from gimli_core.verification.rows import key_of_row, like_results, of_row, of_rows

__all__ = ["ORACLES", "verify"]

ORACLES = ("autograd", "finite_differences", "dense_chain")


@torch.enable_grad()  # the oracles differentiate, whatever mode the caller is in
def verify(
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
    memory: Schedule | None = None,
    approximation: Approximation | None = None,
    second_order: str = "auto",
    tasks: int | Tasks | None = None,
    compile: bool | str = "auto",
    resume: str | Path | None = None,
    micro_batches: int | None = None,
    mesh: DeviceMesh | str | None = None,
    claimed: Mapping[str, Any] | None = None,
    closed_form: Mapping[str, Any] | None = None,
    oracles: Collection[str] = ORACLES,
    tolerance: float | None = None,
) -> Report:
    """Hold a meta-gradient against oracles that are independent of the engine.

        autograd              through a plainly written unroll
        finite differences    of its loss, with their own error estimate
        dense chain           of explicit Jacobian matrices, forwards; for small problems
        closed form           where one is given

    An entry agrees if its largest error is at most

        tolerance · |entry|  +  16 · (change when every theta_j, G_j, s_j moves at random by one unit in the last place)

    plus ten times the oracle's own uncertainty; |·| is the largest element. The second term is the
    conditioning bound: it counts only where rounding alone moves the result that much. The oracles
    work in float64 where the losses allow it.

    Args:
        problem, theta_0, train_batches, val_batch, steps, phi_opt, phi_loss, state_0, val_weights,
            memory, approximation, second_order, tasks, compile, resume, micro_batches: as for `gimli.meta_gradient`;
            that very run is judged. One that goes on from `resume` has the killed run's random numbers: seed alike.
        mesh: as for `gimli.meta_gradient`: the run over processes is judged, by oracles that each of them asks for
            itself, of all that the ranks have. All return the report, so `print` it on one rank.
        claimed: a meta-gradient from elsewhere, to be judged beside the engine's: keyed like a result,
            `{"A_opt": {"lr": …}, "A_loss": {…}, "B_0": {…}, "S_0": {…}}`, or by flat names.
        closed_form: known values, keyed likewise.
            Of a val_loss that returns k numbers every row is judged, as `A_opt["lr"][2]` of L_2: claims are [k, …].
        oracles: which of the first three to ask; autograd always runs.
        tolerance: relative; 1e-10 for float64, 1000 units in the last place for less precise types: the least precise
            of theta, phi_loss and a warm state, and for a hyperparameter's derivative its own, where that is less.

    Returns:
        Report: `print` it; `.ok`, `.assert_ok()`, `.to_dict()`; `.finding` is the first step and
        quantity of the engine that is wrong, if one is.

    Raises:
        ArgumentError: as `meta_gradient`, a claim with an unknown name or a wrong shape, or tasks whose losses draw
            random numbers: a vectorised run draws others than one task after the other.

    Cost: three plain unrolls with their whole graphs in memory, and 12 forward unrolls for each direction of
    a finite difference (an entry of up to 4 elements has one each, a larger one 3); with tasks, that of each in turn;
    of k outer losses k times that.
    Random number generators and module buffers are left as they were found.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0 = {"w": torch.zeros(2, dtype=torch.float64)}
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> gimli.verify(problem, theta_0, lambda j: one, one, steps=2, phi_opt={"lr": 0.5}).ok
    True
    >>> claim = {"lr": -0.25}                                   # the truth is -0.5
    >>> report = gimli.verify(problem, theta_0, lambda j: one, one, steps=2, phi_opt={"lr": 0.5}, claimed=claim)
    >>> report.headline.split(" (")[0]
    'DISAGREES: claimed A_opt["lr"] = -0.25 where autograd gives -0.5'
    """
    several = isinstance(oracles, Collection) and not isinstance(oracles, (str, bytes, Tensor))
    unknown = [name for name in oracles if name not in ORACLES] if several else [oracles]
    if unknown:
        remedy = "Give a list of them; the closed form has its own argument."
        raise unexpected("oracles", f"some of {listing(ORACLES)}", listing(unknown), remedy)
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 <= tolerance < 1):
        raise unexpected("tolerance", "a number in [0, 1)", repr(tolerance), "It is relative to an entry.")
    theta_0, phi_opt, phi_loss = plain_dicts(theta_0), plain_dicts(phi_opt), plain_dicts(phi_loss)
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
        memory,
        approximation,
        second_order,
        tasks,
        compile,
        resume,
        micro_batches=micro_batches,
        mesh=mesh,
    )
    run = make_run(call)
    over = check_mesh(mesh)
    alone = call if over is None else _alone(call, over, run.form)
    batches = alone.train_batches_in_parts()[0]
    asked = Question(replace(alone, train_batches=batches, micro_batches=None, steps=run.form.steps))
    environment = asked.environment()
    if (asked.tasks is not None or over is not None) and draws(asked, environment):
        actual, do = "random numbers drawn, or buffers changed", "Verify one task alone, or draw before the call."
        argument = "tasks" if over is None else "mesh"
        raise unexpected(argument, "losses that are functions of their arguments", actual, do)
    rows = of_rows(asked, environment)
    entries = like_results({VAL_LOSS: torch.zeros(()), **asked.entries()}, rows)
    if not any(value.numel() for key, value in entries.items() if key != VAL_LOSS):
        do = "An empty tensor has no derivative to hold against another."
        raise unexpected("theta_0", "at least one number to differentiate by", "empty tensors alone", do)
    if call.nested and isinstance(claimed, Mapping) and "A_loss" in claimed:
        claimed = {**claimed, "A_loss": flat_entries(claimed["A_loss"], call.nested)}
    claims, truth = entries_of(claimed, entries, "claimed"), entries_of(closed_form, entries, "closed_form")

    with same_randomness(environment):
        drain(run.forward())
        drain(run.backward())
    of_result = _entries_of_result(result := run.result(), call.nested)
    engine = {key: of_result[key] for key in entries}

    question, notes = precise(rows[0], environment)
    if not all(map(torch.equal, result.buffers_J.values(), environment.buffers)):
        notes.append(
            "buffers of modules move in the loop; derivatives take them for constants. Finite differences hold them "
            "between losses, but cannot inside one that moves what it then reads, as spectral_norm does in train mode."
        )
    dtype, coarse = lowest_dtype(rows[0], environment), summed_in(rows[0])
    checks: list[Check] = []
    finding = None
    for row in [asked_of.row for asked_of in rows]:
        of_L = replace(question, row=row)
        bounds = Bounds(of_L, environment, dtype, tolerance, coarse)
        truths, more = asked_of_oracles(of_L, environment, bounds, oracles)
        truths["closed form"] = of_row(truth, row)
        here, claims_here = of_row(engine, row), of_row(claims, row)
        judged: list[Check] = []
        for key, value in here.items():
            judged += against(truths, "engine", key, value, bounds)
            if key in claims_here:
                judged += against({**truths, "engine": here}, "claimed", key, claims_here[key], bounds)
        wrong = [c for c in judged if c.subject == "engine" and c.verdict is Verdict.DISAGREES]
        if wrong and finding is None:
            finding = _locate(alone, environment, bounds, wrong, row)
        checks += [c._replace(key=key_of_row(c.key, row)) for c in judged]
    if bounds.low and dtype != asked.dtype:
        notes.append(
            f"the losses compute in {name_of(dtype)} (autocast); theta, s, B, S and A in {name_of(asked.dtype)}."
        )
    report = Report(tuple(checks), finding, (str(bounds), *notes, *more), name_of(dtype) if bounds.low else "")
    if over is None:
        return report
    verdicts = str([(label(c.key), c.family, c.verdict.name) for c in report.checks])
    return together(over, "verify", lambda: report, lambda: {"the verdicts of verify": verdicts})


def _alone(call: Call, mesh: Mesh, form: Form) -> Call:
    """What a call over processes stands for, as a call of one."""
    if mesh.data is None:
        return replace(call, mesh=None)
    return gathered(call, mesh.data, range(form.steps), [j for j, weighted in enumerate(form.weighted) if weighted])


def _entries_of_result(result: MetaGradient, places: Places) -> Entries:
    parts = {name: getattr(result, name) for name in RESULTS}
    entries = flatten({**parts, "A_loss": flat_entries(parts["A_loss"], places)}, ())
    return {VAL_LOSS: result.val_loss, **{k: v.to_dense() if v.is_sparse else v for k, v in entries.items()}}


def _locate(
    call: Call, environment: Environment, bounds: Bounds, wrong: Sequence[Check], row: int | None
) -> Finding | None:
    """The first quantity that is wrong in an eager run of all tasks from the start, line by line."""
    tasks = check_tasks(call.tasks)
    unchunked = replace(call, tasks=None if tasks is None else replace(tasks, chunk=None), resume=None)
    with same_randomness(environment):
        run = make_run(unchunked, Wants(lines=True, changes=True))
        finding = first_disagreement(run, bounds.reference, bounds.allowed, row)
    by_autograd = [c for c in wrong if c.family == "autograd"]
    if finding is not None or not by_autograd:
        return finding
    first = by_autograd[0]
    truth = {VAL_LOSS: bounds.reference.loss, **bounds.reference.gradient}[first.key]
    difference = (
        (of_row(_entries_of_result(run.result(), call.nested), row)[first.key].to(truth) - truth).abs().max().item()
    )
    if difference <= bounds.allowed(first.key):
        by = f"{first.name}: an eager run, line by line, has it right; what differs is how this one was run"
    else:
        by = f"{first.name}: every increment agrees, but not their sum"
    return Finding(16, None, by, first.error)
