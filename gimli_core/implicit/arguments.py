"""The arguments of an implicit gradient, checked, and brought into the form of a call with one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs, prepare
from gimli_core.arguments.outer_losses import refuse_vector
from gimli_core.arguments.phi_loss import indexed_entries
from gimli_core.arguments.theta import check_tensor
from gimli_core.environment import split_frozen
from gimli_core.errors import listing, unexpected
from gimli_core.implicit.fixed_point import FixedPoint
from gimli_core.implicit.neumann import Neumann
from gimli_core.implicit.systems import Solver
from gimli_core.meta_parameters.marks import PerTask, per_task, unmarked, unmarked_entries
from gimli_core.notation import COUNTS, Tensors
from gimli_core.problem import Problem
from gimli_core.requirements.examine import require
from gimli_core.transforms.proximal import ProximalLoss, with_centre
from gimli_core.transforms.tasks import Tasks, check_tasks, checked_per_task

__all__ = ["Asked", "FixedPointCall", "checked"]

UNROLL = "Unroll the loop: gimli.meta_gradient."
LATE = 1e9  # steps after which the corrections of an average's start have gone


@dataclass(frozen=True, eq=False)
class Asked:
    """What is solved, and how."""

    inputs: Inputs
    solver: Solver
    damping: float
    inner_tolerance: float
    warm_start: Tensors | None
    preconditioner: Mapping[str, Tensor] | Callable[[Tensors], Tensors] | None
    B_0: Tensors  # zeros, keyed and shaped like theta_0

    def start(self, here: FixedPoint) -> Tensor | None:
        """The warm start as a vector."""
        return None if self.warm_start is None else here.vector(self.warm_start)

    def precondition(self, here: FixedPoint) -> Callable[[Tensor], Tensor] | None:
        """The preconditioner on vectors."""
        preconditioner = self.preconditioner
        if preconditioner is None:
            return None
        if isinstance(preconditioner, Mapping):
            diagonal = here.vector(dict(preconditioner))
            return lambda r: r / diagonal
        return lambda r: here.vector(preconditioner(here.tensors(r)))


@dataclass(frozen=True, eq=False)
class FixedPointCall:
    """The arguments of `gimli.implicit_gradient`, unchecked; that function's docstring says what each means."""

    problem: Problem
    theta_star: Any
    train_batch: Any
    val_batch: Any
    phi_loss: Any
    theta_0: Any
    solver: Any
    damping: Any
    warm_start: Any
    preconditioner: Any
    inner_tolerance: Any
    state_star: Any
    phi_opt: Any
    second_order: str
    tasks: Any
    check: bool


def checked(asked: FixedPointCall) -> Asked:
    """What is solved, and how. Raises ArgumentError or RequirementError."""
    problem, solver, damping, theta_0 = asked.problem, asked.solver, asked.damping, asked.theta_0
    _check_solver(solver)
    if asked.phi_opt:
        raise unexpected(
            "phi_opt",
            "None: where the inner loop rests does not depend on the way there, so that the "
            "derivative by the optimizer's hyperparameters is 0",
            listing(unmarked(asked.phi_opt)),
            f"{UNROLL} A weight decay goes into train_loss, as phi_loss.",
        )
    number = isinstance(damping, (int, float)) and not isinstance(damping, bool)
    if not number or not 0 <= damping < math.inf:
        raise unexpected("damping", "a number >= 0", repr(damping), "It is added to the eigenvalues of H.")
    if damping and isinstance(solver, Neumann):
        do = "Use gimli.proximal, or CG."
        raise unexpected("damping", "0 with Neumann, which takes the rule's own steps", repr(damping), do)
    inner_tolerance = asked.inner_tolerance
    if isinstance(inner_tolerance, bool) or not isinstance(inner_tolerance, (int, float)) or not inner_tolerance > 0:
        do = "It is relative to the result; math.inf lets any inner loop pass."
        raise unexpected("inner_tolerance", "a number > 0", repr(inner_tolerance), do)
    if isinstance(solver, Neumann) and isinstance(problem, Problem) and problem.optimizer.seen():
        actual, do = f"{type(problem.optimizer).__name__}, which sees {listing(problem.optimizer.seen())}", UNROLL
        raise unexpected("optimizer", "a rule of the gradient alone, for Neumann", actual, do)
    T = check_tasks(asked.tasks)
    if T is not None and T.chunk is not None:
        do = "Call once a chunk: nothing else is shared."
        raise unexpected("tasks", "no chunk=, as all tasks are solved together", repr(T), do)
    train_loss = getattr(problem, "train_loss", None)
    if isinstance(train_loss, ProximalLoss) and theta_0 is None:
        do = "Give the theta_0 that the inner loop began from."
        raise unexpected("theta_0", "the centre of the proximal problem", "None", do)
    phi_loss = with_centre(train_loss, theta_0, asked.phi_loss)
    if not unmarked(phi_loss):
        do = "Give phi_loss, or make the problem proximal: gimli.proximal(problem, strength)."
        raise unexpected("phi_loss", "something that the fixed point depends on", "none", do)
    star = _like_start(asked.theta_star, theta_0, T)
    call = Call(
        problem,
        star,
        lambda j: asked.train_batch,
        asked.val_batch,
        1,
        None,
        phi_loss,
        _state_per_task(asked.state_star, T),
        second_order=asked.second_order,
        tasks=T,
        compile=False,
        check=asked.check,
    )
    if indexed_entries(call.phi_loss):
        expected, do = "no indexed entry: a fixed point has one batch", "Hand the rows of that batch as they are."
        raise unexpected("phi_loss", expected, "one", do)
    inputs = _late(prepare(call), cold=asked.state_star is None)
    refuse_vector(inputs, "an implicit gradient")
    if asked.check:
        inputs = require(inputs, replays=True)
    for name, value in (("warm_start", asked.warm_start), ("preconditioner", asked.preconditioner)):
        _check_beside(name, value, solver, inputs.values.theta_0)
    start = inputs.values.trained if theta_0 is None else split_frozen(unmarked_entries(theta_0))[0]
    one = {k: v[0] for k, v in start.items()} if theta_0 is None and T is not None else start
    B_0 = {k: torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32)) for k, v in one.items()}
    return Asked(inputs, solver, float(damping), float(inner_tolerance), asked.warm_start, asked.preconditioner, B_0)


def _check_solver(solver: Any) -> None:
    if isinstance(solver, Solver):
        return
    actual = f"the class {solver.__name__}" if isinstance(solver, type) else repr(solver)
    do = "Call it: solver=gimli.implicit.CG(rtol=1e-6)."
    raise unexpected("solver", "one of gimli.implicit: CG, MINRES, Neumann, Dense", actual, do)


def _like_start(theta_star: Any, theta_0: Any, tasks: Tasks | None) -> Any:
    """theta_star with what theta_0 holds constant as frozen parameters, marked as the tasks' own."""
    star, T = unmarked(theta_star), None if tasks is None else tasks.count
    start = unmarked_entries(theta_0)
    if not isinstance(star, Mapping) or (start is not None and not isinstance(start, Mapping)):
        actual, name = (star, "theta_star") if not isinstance(star, Mapping) else (start, "theta_0")
        expected, do = "a dict {name: floating-point tensor}", "Take it from result.theta_J."
        raise unexpected(name, expected, type(actual).__name__, do)
    if start is not None:
        if set(start) != set(star):
            do = "They are two places of the same parameters."
            raise unexpected("theta_star", f"the names of theta_0, {listing(start)}", listing(star), do)
        star = {k: _frozen(v, start[k]) for k, v in star.items()}
    for k, v in star.items():
        check_tensor(f"theta_star[{k!r}]", v)
    if T is None:
        return star
    of_each = {
        k: _spread(v, T) if _is_frozen(v) and start is not None and v.shape == start[k].shape else v
        for k, v in star.items()
    }
    return per_task(checked_per_task("theta_star", of_each, T))


def _frozen(value: Any, like: Any) -> Any:
    """A tensor that is held constant where `like` is."""
    return (
        nn.Parameter(value.detach(), requires_grad=False) if _is_frozen(like) and isinstance(value, Tensor) else value
    )


def _is_frozen(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and not value.requires_grad


def _spread(value: Tensor, count: int) -> nn.Parameter:
    """What the tasks share, once a task."""
    return nn.Parameter(value.detach().expand(count, *value.shape), requires_grad=False)


def _state_per_task(state_star: Any, tasks: Tasks | None) -> Any:
    """A state of every task is its own."""
    return (
        state_star if tasks is None or state_star is None or isinstance(state_star, PerTask) else per_task(state_star)
    )


def _late(inputs: Inputs, *, cold: bool) -> Inputs:
    """A cold state as it is long after the start: at rest, and with no correction for its beginning left."""
    if not cold:
        return inputs
    state = {slot: torch.full_like(v, LATE) if slot in COUNTS else v for slot, v in inputs.values.state_0.items()}
    return replace(inputs, values=replace(inputs.values, state_0=state))


def _check_beside(name: str, value: Any, solver: Solver, theta: Tensors) -> None:
    """Raise ArgumentError unless a warm start or a preconditioner is of use to the solver and fits theta."""
    if value is None:
        return
    if not (solver.iterative if name == "warm_start" else solver.preconditioned):
        kinds = "CG or MINRES" if name == "warm_start" else "CG"
        raise unexpected(name, f"None, or {kinds} as the solver", repr(solver), "It has no use for it.")
    if callable(value) and name == "preconditioner":
        return
    if not isinstance(value, Mapping) or set(value) != set(theta):
        actual = listing(value) if isinstance(value, Mapping) else type(value).__name__
        raise unexpected(name, f"a tensor for each of {listing(theta)}", actual, "Key it as theta_star is.")
    for k, like in theta.items():
        v, argument = value[k], f"{name}[{k!r}]"
        if not isinstance(v, Tensor) or v.shape != like.shape:
            actual = f"shape {list(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            expected = f"a tensor of shape {list(like.shape)}, as theta_star has"
            raise unexpected(argument, expected, actual, "With tasks each has its own.")
        if not bool(torch.isfinite(v).all()) or (name == "preconditioner" and not bool((v > 0).all())):
            expected = "finite numbers" if name == "warm_start" else "finite numbers > 0"
            raise unexpected(
                argument,
                expected,
                "others",
                "It estimates the diagonal of H + damping I."
                if name == "preconditioner"
                else "Leave it out to begin at 0.",
            )
