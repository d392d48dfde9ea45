"""The engine, or a claim from elsewhere, against every oracle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.errors import ArgumentError, closest, explain, listing
from gimli_core.inputs import Inputs, prepare
from gimli_core.memory import Schedule
from gimli_core.meta_gradient import Execution, MetaGradient, check_schedule, meta_gradient
from gimli_core.modules import Environment
from gimli_core.optimizers.interface import State
from gimli_core.problem import Problem
from gimli_core.verification.dense_chain import LIMIT, dense_chain
from gimli_core.verification.finite_differences import Slopes, finite_differences
from gimli_core.verification.localise import Finding, first_disagreement
from gimli_core.verification.plain_rules import RULES, flat_root
from gimli_core.verification.plain_unroll import Totals, autograd_gradient, loss_value, random_rounding
from gimli_core.verification.question import Entries, Key, Question, flatten, label, same_randomness
from gimli_core.verification.report import Check, Report, Verdict, judge

__all__ = ["ORACLES", "verify"]

ORACLES = ("autograd", "finite_differences", "dense_chain")
PROBES = 2
VAL_LOSS: Key = ("val_loss",)


def verify(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Tensor] | None = None,
    state_0: State | None = None,
    val_weights: Sequence[float] | Tensor | None = None,
    memory: Schedule | None = None,
    recurrence: str = "augmented",
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

        tolerance · |entry|  +  16 · (change when every theta_j, G_j, s_j is rounded at random by one unit)

    plus ten times the oracle's own uncertainty; |·| is the largest element. The second term is the
    conditioning bound: it counts only where rounding alone moves the result that much. The oracles
    work in float64 where the losses allow it.

    Args:
        problem, theta_0, train_batches, val_batch, steps, phi_opt, phi_loss, state_0, val_weights,
            memory, recurrence: as for `gimli.meta_gradient`.
        claimed: a meta-gradient from elsewhere, to be judged beside the engine's: keyed like a result,
            `{"A_opt": {"lr": …}, "A_loss": {…}, "B_0": {…}, "S_0": {…}}`, or by flat names.
        closed_form: known values, keyed likewise.
        oracles: which of the first three to ask; autograd always runs.
        tolerance: relative; 1e-10 for float64, 1000 units in the last place for less precise types.

    Returns:
        Report: `print` it; `.ok`, `.assert_ok()`, `.to_dict()`; `.finding` is the first step and
        quantity of the engine that is wrong, if one is.

    Raises:
        ArgumentError: as `meta_gradient`, or a claim with an unknown name or a wrong shape.

    Cost: three plain unrolls with their whole graphs in memory, and 12 forward unrolls for each direction of
    a finite difference (an entry of up to 4 elements has one each, a larger one 3).
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
    unknown = [name for name in oracles if name not in ORACLES]
    if unknown:
        raise ArgumentError(explain("oracles", f"some of {listing(ORACLES)}", listing(unknown), "The closed form has its own argument."))
    schedule = check_schedule(memory)
    arguments: dict[str, Any] = {
        "steps": steps, "phi_opt": phi_opt, "phi_loss": phi_loss, "state_0": state_0, "val_weights": val_weights, "recurrence": recurrence,
    }  # fmt: skip
    inputs = prepare(problem, theta_0, train_batches, val_batch, **arguments)
    asked = Question(problem, theta_0, train_batches, val_batch, inputs.steps, phi_opt or {}, phi_loss or {}, state_0, val_weights)
    entries = asked.entries()
    claims = _entries_of(claimed, entries, "claimed")
    known = _entries_of(closed_form, {**entries, VAL_LOSS: torch.zeros(())}, "closed_form")
    environment = inputs.environment

    with same_randomness(environment):
        result = meta_gradient(problem, theta_0, train_batches, val_batch, memory=schedule, **arguments)
    question, notes = _precise(asked, environment)
    bounds = _Bounds(asked, question, environment, tolerance)
    truths: dict[str, Mapping[Key, Tensor | Slopes]] = {"autograd": _with_loss(bounds.strict)}
    if bounds.reference is not bounds.strict:
        truths["autograd, sqrt'(0) = 0"] = _with_loss(bounds.reference)
        notes.append("autograd gives NaN where sqrt meets 0 and its factor is 0; the second autograd takes the limit of the product, 0.")
    if "finite_differences" in oracles:
        truths["finite differences"] = finite_differences(question, environment)
    if "dense_chain" in oracles:
        found = dense_chain(question, environment, root=bounds.root)
        truths["dense chain"] = found or {}
        if found is None:
            notes.append(f"the dense chain is left out: more than {LIMIT} elements of state and meta-parameters.")
    truths["closed form"] = known
    if type(problem.optimizer) not in RULES:
        notes.append(
            f"{type(problem.optimizer).__name__} has no plain rule here: autograd goes through its own step, which checks its pullback, not its step."
        )

    engine = {VAL_LOSS: result.val_loss, **{k: v for k, v in _flat_result(result).items() if k in entries}}
    checks: list[Check] = []
    for key, value in engine.items():
        checks += [_check("engine", key, value, oracle, held[key], bounds) for oracle, held in truths.items() if key in held]
        if key in claims:
            against = {**truths, "engine": engine}
            checks += [_check("claimed", key, claims[key], oracle, held[key], bounds) for oracle, held in against.items() if key in held]
    wrong = [c for c in checks if c.subject == "engine" and c.verdict is Verdict.DISAGREES]
    finding = _locate(inputs, schedule, bounds, wrong) if wrong else None
    return Report(tuple(checks), finding, (bounds.statement(), *notes))


class _Bounds:
    """How far two right answers may lie apart, entry by entry and quantity by quantity."""

    def __init__(self, asked: Question, question: Question, environment: Environment, tolerance: float | None) -> None:
        eps = torch.finfo(asked.dtype).eps
        self.dtype = asked.dtype
        self.tolerance = max(1e-10, 1000 * eps) if tolerance is None else tolerance
        self.strict = self.reference = autograd_gradient(question, environment)
        self.root = torch.sqrt
        if not all(bool(torch.isfinite(g).all()) for g in self.strict.gradient.values()):
            self.root = flat_root
            self.reference = autograd_gradient(question, environment, root=flat_root)
        self.sizes = _largest(_quantities(self.reference))
        self.moved = dict.fromkeys(self.sizes, 0.0)
        for seed in range(PROBES):
            probe = autograd_gradient(question, environment, root=self.root, rounding=random_rounding(asked.dtype, seed))
            reference = _quantities(self.reference)
            change = _largest({key: value - reference[key] for key, value in _quantities(probe).items()})
            self.moved = {key: max(before, change[key]) for key, before in self.moved.items()}

    def rounding(self, key: Key) -> float:
        return self.moved[key]

    def allowed(self, key: Key) -> float:
        return self.tolerance * self.sizes[key] + 16 * self.moved[key]

    def statement(self) -> str:
        return (
            f"allowed: {self.tolerance:.1e} relative, and 16 times what rounding every theta_j, G_j and s_j at random by one unit "
            f"of {str(self.dtype).removeprefix('torch.')} changes; finite differences: and 10 times their uncertainty."
        )


def _check(subject: str, key: Key, value: Tensor, oracle: str, truth: Tensor | Slopes, bounds: _Bounds) -> Check:
    if isinstance(truth, Slopes):
        longest = truth.directions.abs().sum(1).max().item()
        name = oracle if truth.directions.shape[0] == value.numel() else f"{oracle}, {truth.directions.shape[0]} directions"
        return judge(subject, key, name, truth.of(value), truth.values, truth.uncertainty.max().item(), bounds.allowed(key) * longest)
    own = 0.0 if oracle in ("closed form", "engine") else bounds.rounding(key)
    return judge(subject, key, oracle, value, truth, own, bounds.allowed(key))


def _locate(inputs: Inputs, schedule: Schedule, bounds: _Bounds, wrong: Sequence[Check]) -> Finding | None:
    with same_randomness(inputs.environment):
        found = first_disagreement(Execution(inputs, schedule), bounds.reference, bounds.allowed)
    if found is None and any(c.oracle.startswith("autograd") for c in wrong):
        return Finding(16, 0, f"{wrong[0].name}: every increment agrees, but not their sum", wrong[0].error)
    return found


def _precise(asked: Question, environment: Environment) -> tuple[Question, list[str]]:
    """The question in float64 if the losses can answer it there, and a note on that."""
    if asked.dtype == torch.float64:
        return asked, []
    name = str(asked.dtype).removeprefix("torch.")
    doubled = asked.in_double()
    try:
        loss_value(doubled, doubled.entries(), environment)
    except RuntimeError:
        return asked, [f"the oracles work in {name}, as the engine does: the losses hold tensors of their own that refuse float64."]
    return doubled, [f"the engine works in {name}, the oracles in float64."]


def _entries_of(given: Mapping[str, Any] | None, entries: Entries, argument: str) -> Entries:
    """`given`, keyed like a result or by flat names, as entries of the same shapes."""
    results = {key[0] for key in entries} | {"A_opt", "A_loss", "B_0", "S_0"}
    found: Entries = {}
    for name, tree in (given or {}).items():
        homes = [name] if name in results else [r for r in ("A_opt", "A_loss", "B_0", "S_0") if any(k[:2] == (r, name) for k in entries)]
        if len(homes) != 1:
            names = list(dict.fromkeys(key[1] for key in entries if len(key) > 1))
            came = f"{name!r}, which is in {listing(homes)}" if homes else repr(name)
            raise ArgumentError(
                explain(argument, f"names of one meta-parameter each ({listing(names)}), or A_opt, A_loss, B_0, S_0", came,
                        f"Nest it under the result that it belongs to.{closest(name, names)}")
            )  # fmt: skip
        path: Key = (name,) if name in results else (homes[0], name)
        found.update(flatten(tree, path))
    for key, value in found.items():
        if key not in entries:
            raise ArgumentError(explain(argument, f"entries among {listing(map(label, entries))}", label(key), "Key it as the inputs are."))
        if value.shape != entries[key].shape:
            raise ArgumentError(
                explain(f"{argument}: {label(key)}", f"shape {list(entries[key].shape)}, as its meta-parameter has", str(list(value.shape)),
                        "Give the derivative with respect to all of it.")
            )  # fmt: skip
    return found


def _flat_result(result: MetaGradient) -> Entries:
    return {key: v for name in ("A_opt", "A_loss", "B_0", "S_0") for key, v in flatten(getattr(result, name), (name,)).items()}


def _with_loss(totals: Totals) -> Entries:
    return {VAL_LOSS: totals.loss, **totals.gradient}


def _quantities(totals: Totals) -> Entries:
    return {**_with_loss(totals), **totals.forward, **totals.backward}


def _largest(entries: Entries) -> dict[Key, float]:
    return {key: v.abs().max().item() if v.numel() else 0.0 for key, v in entries.items()}
