"""The meta-gradient at a fixed point of the inner loop, without its path."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.errors import unexpected
from gimli_core.implicit.arguments import Asked, FixedPointCall, checked
from gimli_core.implicit.conjugate_gradient import CG
from gimli_core.implicit.fixed_point import FixedPoint, at_point
from gimli_core.implicit.neumann import Neumann
from gimli_core.implicit.refusals import refuse_moving_rule, refuse_not_finite, refuse_unconverged_loop, refuse_unsolved
from gimli_core.implicit.report import ErrorBar, ImplicitGradient, ImplicitReport
from gimli_core.implicit.systems import Solution, Solver, norm
from gimli_core.notation import State, Tensors
from gimli_core.problem import Problem
from gimli_core.record import Ends, Outcome, Point
from gimli_core.runs.outcome import finished, reduced
from gimli_core.transforms.nested import nested
from gimli_core.transforms.proximal import into_start
from gimli_core.transforms.tasks import Tasks

__all__ = ["implicit_gradient"]


def implicit_gradient(
    problem: Problem,
    theta_star: Mapping[str, Tensor],
    train_batch: Any,
    val_batch: Any,
    *,
    phi_loss: Mapping[str, Any] | None = None,
    theta_0: Mapping[str, Tensor] | None = None,
    solver: Solver | None = None,
    damping: float = 0.0,
    warm_start: Tensors | None = None,
    preconditioner: Mapping[str, Tensor] | Callable[[Tensors], Tensors] | None = None,
    inner_tolerance: float = 0.1,
    state_star: State | None = None,
    phi_opt: None = None,
    second_order: str = "auto",
    tasks: int | Tasks | None = None,
    check: bool = True,
    mesh: None = None,
) -> ImplicitGradient:
    """The derivative of L_val at the fixed point of an inner loop, by the implicit function theorem.

        grad ell(theta_star, phi_loss) = 0   defines theta_star(phi_loss)
        H v = grad L_val(theta_star),   H = Hessian ell(theta_star)
        A_loss = dL_val/dphi_loss - v grad_phi grad_theta ell

    and for a `gimli.proximal` problem B_0 = lambda v, since its centre is theta_0. Nothing of the path of the inner
    loop enters: any optimizer may have led to theta_star, and memory does not grow with its steps.

    Args:
        problem: the losses and the rule, as for `gimli.meta_gradient`.
        theta_star: where the inner loop came to rest: `result.theta_J`. With tasks every tensor is `[T, …]`.
        train_batch: the batch of the inner loss, one for all steps.
        val_batch: what `val_loss` is called with.
        phi_loss: `{name: tensor}`, as it was for the inner loop.
        theta_0: where the inner loop began, the centre of a proximal problem; also says by its `nn.Parameter`s what is
            held constant. B_0 is keyed like it.
        solver: `gimli.implicit.CG(rtol, steps)`, the default; `MINRES(…)`, `Neumann(k)` or `Dense()`.
        damping: solve with H + damping I. The result then says that it is not exact.
        warm_start: v to begin from: `result.report.v` of the last call.
        preconditioner: `{name: tensor}`, positive estimates of the diagonal of H + damping I; or a function that maps
            such tensors to about its inverse times them, symmetric and positive definite.
        inner_tolerance: how much of the result an inner loop that has not converged may change, before it is refused.
        state_star: the rule's state at theta_star, `result.state_J`, which `Neumann` uses; else one without momentum,
            after infinitely many steps.
        phi_opt: None. Where the loop rests does not depend on how it got there: the derivative is 0.
        mesh: None. Tasks of a process by itself, and one all_reduce of their A_loss, are what processes can do here.
        second_order, tasks, check: as for `gimli.meta_gradient`; tasks are solved together, each to its own end.

    Returns:
        ImplicitGradient: a `MetaGradient` with `A_loss`, `B_0`, `val_loss`, …, and `report`: residual, steps, mu and
        kappa, and how far off the result may be from the solve and from the inner loop. `print(result.report)`.

    Raises:
        ArgumentError, RequirementError: before any work.
        NegativeCurvatureError: H is not positive definite; with the direction and the damping that cures it.
        NotConvergedError: the solver did not reach its tolerance, or the inner loop is not near its fixed point.

    Cost: 6F a step of the solver, and about half as much again for the error bars; the memory of one gradient's graph.
    Source: Rajeswaran et al. 2019; Lorraine et al. 2020; Grazzi et al. 2020.

    >>> import torch, gimli_core as gimli
    >>> def train_loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2 + phi["l2"] * (theta["w"] ** 2).sum() / 2
    >>> def val_loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(train_loss, val_loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_star = {"w": torch.full((2,), 0.5)}               # target / (1 + l2)
    >>> one, l2 = torch.ones(2), {"l2": torch.tensor(1.0)}
    >>> result = gimli.implicit_gradient(problem, theta_star, one, one, phi_loss=l2)
    >>> result.A_loss["l2"]                                     # (w - target) · dw/dl2, dw/dl2 = -target / (1 + l2)²
    tensor(0.2500)
    """
    if mesh is not None:
        do = "Give each process tasks of its own, and sum their A_loss by torch.distributed.all_reduce."
        raise unexpected("mesh", "None at a fixed point, which each process solves for by itself", repr(mesh), do)
    call = FixedPointCall(
        problem,
        theta_star,
        train_batch,
        val_batch,
        phi_loss,
        theta_0,
        CG() if solver is None else solver,
        damping,
        warm_start,
        preconditioner,
        inner_tolerance,
        state_star,
        phi_opt,
        second_order,
        tasks,
        check,
    )
    asked = checked(call)
    environment, values = asked.inputs.environment, asked.inputs.values
    start = environment.capture()
    try:
        return _solved(asked, at_point(asked.inputs, Point(0, values.theta_0, values.state_0, start)))
    finally:
        environment.restore(start)


def _solved(asked: Asked, here: FixedPoint) -> ImplicitGradient:
    """The gradient at a point, with its report."""
    solver, damping = asked.solver, asked.damping
    refuse_not_finite(here)
    if not isinstance(solver, Neumann):
        refuse_moving_rule(here, solver)
    more = {"precondition": asked.precondition(here)}
    system = here.system(here.vector(here.L.theta), damping, start=asked.start(here), **more)
    solution = solver.solve(system)
    refuse_unsolved(here, solver, system, solution)
    through, explicit = _parts(here, solution.v)

    there, change, products = _further(asked, here, solution, more)
    through_there, explicit_there = _parts(there, change.v)
    if change.bad is not None or not bool(change.converged.all()):  # nothing is known of the fixed point
        through_there = {k: torch.full_like(v, torch.inf) for k, v in through_there.items()}

    size = _length(through, explicit)
    rounding = torch.finfo(solution.v.dtype).eps * _kappa(solution).abs().nan_to_num(1.0).max()
    unsure = _scaled(here, here.mixed(solution.lacking))
    report = ImplicitReport(
        solver=repr(solver),
        damping=damping,
        residual=_row(here, solution.residual),
        steps=_row(here, solution.steps),
        products=system.products + products,
        mu=_row(here, solution.spectrum.lowest),
        kappa=_row(here, _kappa(solution)),
        inner_gradient=_row(here, norm(here.vector(here.G.theta))),
        inner_step=_row(here, norm(there.vector(there.point.theta) - here.vector(here.point.theta))),
        solve=_error_bar(asked, {k: v.abs() + rounding * through[k].abs() for k, v in unsure.items()}, size),
        inner=_error_bar(
            asked,
            {k: (through_there[k] + explicit_there[k] - through[k] - explicit[k]).abs() for k in through},
            size,
        ),
        v=here.tensors(solution.v),
    )
    refuse_unconverged_loop(report, asked.inner_tolerance)
    return _result(asked, here, {k: v + explicit[k] for k, v in through.items()}, report)


def _further(asked: Asked, here: FixedPoint, solution: Solution, more: Any) -> tuple[FixedPoint, Solution, int]:
    """About where the inner loop would come to rest, the solution there, and how many products that took.

    One digit is enough to tell by how much the result changes. So it is Newton's step that leads there, and there the
    solution's change is solved for, not the solution anew, whose own error would hide it.
    """
    solver, damping = asked.solver, asked.damping
    if isinstance(solver, Neumann):  # the rule need not rest where the gradient is 0: its own steps lead on
        there = here.onward(solver.terms)
        system = there.system(there.vector(there.L.theta), 0.0)
        return there, solver.solve(system), system.products
    loose = solver.to(0.1)
    newton = here.system(-here.vector(here.G.theta), damping, **more)
    step = loose.solve(newton)
    refuse_unsolved(here, loose, newton, step)
    there = here.moved(step.v)
    left = here.vector(here.L.theta) - newton.product(solution.v)
    system = there.system(there.vector(there.L.theta), damping, **more)
    system.b = system.b - system.product(solution.v) - left
    change = loose.solve(system)
    return there, change._replace(v=solution.v + change.v), newton.products + system.products


def _parts(here: FixedPoint, v: Tensor) -> tuple[Tensors, Tensors]:
    """A_loss in two: -v grad_phi grad_theta ell, and the explicit derivative of L_val. One product."""
    return _scaled(here, here.mixed(-v)), _scaled(here, here.L.phi_loss)


def _scaled(here: FixedPoint, tensors: Tensors) -> Tensors:
    """The sum over the tasks as their mean, if that is asked for; in float32 at least."""
    return {k: here.inputs.form.scale * v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in tensors.items()}


def _kappa(solution: Solution) -> Tensor:
    return solution.spectrum.highest / solution.spectrum.lowest


def _row(here: FixedPoint, of_rows: Tensor) -> Tensor:
    """What is `[T]`, or one number where there are no tasks."""
    return of_rows if here.inputs.form.tasks is not None else of_rows[0]


def _once(aux: Any) -> Any:
    """What a loss returned besides, as that of one step."""
    return None if aux is None else pytree.tree_map(lambda leaf: leaf[None], aux)


def _length(*trees: Tensors) -> float:
    """Of all tensors as one vector."""
    return math.sqrt(sum(v.double().square().sum().item() for tensors in trees for v in tensors.values()))


def _error_bar(asked: Asked, error: Tensors, size: float) -> ErrorBar:
    length = _length(error)
    relative = length / size if size else (0.0 if length == 0 else math.inf)
    A_loss, B_0 = into_start(error, asked.B_0, curvature=True)
    return ErrorBar(nested(A_loss, asked.inputs.form.nested), B_0, relative)


def _result(asked: Asked, here: FixedPoint, A_loss: Tensors, report: ImplicitReport) -> ImplicitGradient:
    """The result in the structure that the arguments came in."""
    form, values, L = here.inputs.form, here.inputs.values, here.L.loss
    S_0 = form.optimizer.zero_adjoint(here.point.state)
    outcome = Outcome(
        val_loss=reduced(form, L),
        of_each=L,
        train_losses=here.G.loss[None],
        val_losses=torch.stack([torch.full_like(L, torch.nan), L]),
        ends=Ends(here.point.theta, here.point.state, asked.B_0, S_0),
        buffers_J=here.inputs.environment.copies(),
        A_opt=[],
        A_loss=A_loss,
        aux=(_once(here.G.aux), _once(here.L.aux)),
    )
    missing = [f"Neumann: {asked.solver.terms} terms"] if isinstance(asked.solver, Neumann) else []
    missing += [f"damped: H + {asked.damping:g} I in place of H"] * bool(asked.damping)
    parts = vars(finished(form, values.frozen, values.hyper, outcome))
    return ImplicitGradient(**{**parts, "approximation": "; ".join(missing)}, report=report)
