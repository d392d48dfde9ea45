"""The engine, or a claim from elsewhere, against every oracle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.call import Call
from gimli_core.environment import Environment
from gimli_core.errors import listing, unexpected
from gimli_core.memory import Schedule
from gimli_core.meta_parameters.marks import plain_dicts
from gimli_core.notation import State
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient
from gimli_core.runs.make_run import Wants, make_run
from gimli_core.runs.run import drain
from gimli_core.transforms.tasks import Tasks, check_tasks
from gimli_core.verification.against import Answers, against
from gimli_core.verification.bounds import Bounds
from gimli_core.verification.check import Check, Verdict
from gimli_core.verification.claims import entries_of
from gimli_core.verification.localise import Finding, first_disagreement
from gimli_core.verification.oracles.autograd_through_the_graph import draws
from gimli_core.verification.oracles.dense_chain import LIMIT, dense_chain
from gimli_core.verification.oracles.finite_differences import finite_differences
from gimli_core.verification.oracles.plain_rules import RULES
from gimli_core.verification.precision import lowest_dtype, name_of, precise
from gimli_core.verification.question import RESULTS, VAL_LOSS, Entries, Question, flatten, same_randomness
from gimli_core.verification.report import Report

__all__ = ["ORACLES", "verify"]

ORACLES = ("autograd", "finite_differences", "dense_chain")


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
            memory, approximation, second_order, tasks, compile, resume, micro_batches: as for
            `gimli.meta_gradient`; that very run is
            judged. One that goes on from `resume` has the random numbers of the run that was killed: seed alike.
        claimed: a meta-gradient from elsewhere, to be judged beside the engine's: keyed like a result,
            `{"A_opt": {"lr": …}, "A_loss": {…}, "B_0": {…}, "S_0": {…}}`, or by flat names.
        closed_form: known values, keyed likewise.
        oracles: which of the first three to ask; autograd always runs.
        tolerance: relative; 1e-10 for float64, 1000 units in the last place for less precise types.

    Returns:
        Report: `print` it; `.ok`, `.assert_ok()`, `.to_dict()`; `.finding` is the first step and
        quantity of the engine that is wrong, if one is.

    Raises:
        ArgumentError: as `meta_gradient`, a claim with an unknown name or a wrong shape, or tasks whose losses draw
            random numbers: a vectorised run draws others than one task after the other.

    Cost: three plain unrolls with their whole graphs in memory, and 12 forward unrolls for each direction of
    a finite difference (an entry of up to 4 elements has one each, a larger one 3); with tasks, that of each in turn.
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
    unknown = [oracles] if isinstance(oracles, str) else [name for name in oracles if name not in ORACLES]
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
    )
    run = make_run(call, Wants(one_number="verify"))
    asked = Question(
        problem,
        theta_0,
        call.train_batches_in_parts()[0],
        val_batch,
        run.form.steps,
        phi_opt or {},
        phi_loss or {},
        state_0,
        val_weights,
        run.form.left_out,
        check_tasks(tasks),
    )
    environment = asked.environment()
    entries = {VAL_LOSS: torch.zeros(()), **asked.entries()}
    if asked.tasks is not None and draws(asked, environment):
        came, do = "random numbers drawn, or buffers changed", "Verify one task alone, or draw before the call."
        raise unexpected("tasks", "losses that are functions of their arguments", came, do)
    claims, known = entries_of(claimed, entries, "claimed"), entries_of(closed_form, entries, "closed_form")

    with same_randomness(environment):
        drain(run.forward())
        drain(run.backward())
    result = run.result()
    found = _entries_of_result(result)
    engine = {key: found[key] for key in entries}

    question, notes = precise(asked, environment)
    if not all(map(torch.equal, result.buffers_J.values(), environment.buffers)):
        notes.append(
            "buffers of modules move in the loop; derivatives take them for constants. Finite differences hold them "
            "between losses, but cannot inside one that moves what it then reads, as spectral_norm does in train mode."
        )
    dtype = lowest_dtype(asked, environment)
    bounds = Bounds(question, environment, dtype, tolerance)
    if bounds.low and dtype != asked.dtype:
        notes.append(
            f"the losses compute in {name_of(dtype)} (autocast); theta, s, B, S and A in {name_of(asked.dtype)}."
        )
    truths, more = _ask(question, environment, bounds, oracles)
    truths["closed form"] = known
    checks: list[Check] = []
    for key, value in engine.items():
        checks += against(truths, "engine", key, value, bounds)
        if key in claims:
            checks += against({**truths, "engine": engine}, "claimed", key, claims[key], bounds)
    wrong = [c for c in checks if c.subject == "engine" and c.verdict is Verdict.DISAGREES]
    finding = _locate(call, environment, bounds, wrong) if wrong else None
    return Report(tuple(checks), finding, (str(bounds), *notes, *more), name_of(dtype) if bounds.low else "")


def _ask(
    question: Question, environment: Environment, bounds: Bounds, oracles: Collection[str]
) -> tuple[dict[str, Answers], list[str]]:
    """What each oracle says, and notes on what it cannot say."""
    answers: dict[str, Answers] = {"autograd": {VAL_LOSS: bounds.strict.loss, **bounds.strict.gradient}}
    notes = []
    if bounds.reference is not bounds.strict:
        answers["autograd, sqrt'(0) = 0"] = {VAL_LOSS: bounds.reference.loss, **bounds.reference.gradient}
        notes.append(
            "autograd gives NaN where sqrt meets 0 and its factor is 0; the second takes the product's limit, 0."
        )
    if question.left_out.first_order or question.left_out.first(question.steps):
        notes.append("an approximation is judged as what it says: by autograd alone, with the same left out.")
        return answers, notes
    if "finite_differences" in oracles:
        answers["finite differences"] = finite_differences(question, environment)
    if "dense_chain" in oracles:
        chain = dense_chain(question, environment, root=bounds.root)
        answers["dense chain"] = chain or {}
        if chain is None:
            notes.append(f"the dense chain is left out: more than {LIMIT} elements of state and meta-parameters.")
    rule = type(question.problem.optimizer)
    if rule not in RULES:
        notes.append(
            f"{rule.__name__} has no plain rule here: every oracle runs its own step, which checks its pullback only."
        )
    return answers, notes


def _entries_of_result(result: MetaGradient) -> Entries:
    found = flatten({name: getattr(result, name) for name in RESULTS}, ())
    return {VAL_LOSS: result.val_loss, **{k: v.to_dense() if v.is_sparse else v for k, v in found.items()}}


def _locate(call: Call, environment: Environment, bounds: Bounds, wrong: Sequence[Check]) -> Finding | None:
    """The first quantity that is wrong in an eager run of all tasks from the start, line by line."""
    tasks = check_tasks(call.tasks)
    whole = replace(call, tasks=None if tasks is None else replace(tasks, chunk=None), resume=None)
    with same_randomness(environment):
        run = make_run(whole, Wants(lines=True, changes=True))
        found = first_disagreement(run, bounds.reference, bounds.allowed)
    by_autograd = [c for c in wrong if c.family == "autograd"]
    if found is not None or not by_autograd:
        return found
    first = by_autograd[0]
    truth = {VAL_LOSS: bounds.reference.loss, **bounds.reference.gradient}[first.key]
    difference = (_entries_of_result(run.result())[first.key].to(truth) - truth).abs().max().item()
    if difference <= bounds.allowed(first.key):
        by = f"{first.name}: an eager run, line by line, has it right; what differs is how this one was run"
    else:
        by = f"{first.name}: every increment agrees, but not their sum"
    return Finding(16, None, by, first.error)
