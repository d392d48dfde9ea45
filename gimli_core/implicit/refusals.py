"""What cannot be answered, at the point where that is known: each with what was seen, and the way out."""

from __future__ import annotations

import torch

from gimli_core.derivatives.finite import flaw
from gimli_core.errors import (
    NegativeCurvatureError,
    NotConvergedError,
    NotFiniteError,
    listing,
    unexpected,
)
from gimli_core.implicit.fixed_point import FixedPoint
from gimli_core.implicit.report import ImplicitReport
from gimli_core.implicit.ritz import lowest
from gimli_core.implicit.systems import Solution, Solver, System, tiny

__all__ = ["refuse_moving_rule", "refuse_not_finite", "refuse_unconverged_loop", "refuse_unsolved"]

UNROLL = "Or unroll the loop, which needs no fixed point: gimli.meta_gradient."
LOOKED = (30, 200)  # products for the lowest eigenvalue, at least and at most


def refuse_not_finite(here: FixedPoint) -> None:
    """Raise NotFiniteError unless L_val and its gradient are finite."""
    tensors = (here.L.loss, *here.L.theta.values(), *here.L.phi_loss.values())
    if not all(bool(torch.isfinite(v).all()) for v in tensors):
        raise NotFiniteError(
            f"val_loss at theta_star: expected a finite loss and gradient; got inf or nan. "
            f"{flaw(here.inputs.values.val_batch)}Look at val_loss and val_batch."
        )


def refuse_moving_rule(here: FixedPoint, solver: Solver) -> None:
    """Raise ArgumentError where the rule does not rest at a zero of the inner gradient: H says nothing of it then."""
    form, theta = here.inputs.form, here.point.theta
    after = here.step({k: torch.zeros_like(v) for k, v in here.G.theta.items()})
    moved = [k for k in form.optimizer.moved_by_gradient(theta) if not torch.equal(after[k], theta[k])]
    if moved:
        rule = type(here.inputs.form.problem.optimizer).__name__
        raise unexpected(
            "optimizer",
            f"a rule that rests where the gradient of train_loss is 0, for {solver}",
            f"{rule}, which moves {listing(moved)} there, as weight decay does",
            "Put the decay into "
            "train_loss, as phi_loss; or use gimli.implicit.Neumann(k), which takes the rule's own steps.",
        )


def refuse_unsolved(here: FixedPoint, solver: Solver, system: System, solution: Solution) -> None:
    """Raise unless every task's system was solved."""
    if solution.bad is not None:
        _refuse_curvature(here, solver, system, solution)
    failed = ~solution.converged
    if bool(failed.any()):
        t = int(failed.nonzero()[0])
        low, high = (bound[t].item() for bound in solution.spectrum)
        expected = f"at most {rtol:.1g} of the right-hand side" if (rtol := solver.tolerance(solution.v)) else "less"
        raise NotConvergedError(
            f"{solver}{_of_task(here, t)}: expected a residual of {expected}; got {solution.residual[t].item():.2g} "
            f"after {int(solution.steps[t])} steps, with eigenvalues of the Hessian from {low:.3g} or less to "
            f"{high:.3g} or more. {solver.remedy}{UNROLL}"
        )


def _refuse_curvature(here: FixedPoint, solver: Solver, system: System, solution: Solution) -> None:
    assert solution.bad is not None
    rows = solution.bad.abs().amax(1) > 0
    steps = max(LOOKED[0], min(LOOKED[1], 10 + int(solution.steps.max())))
    ritz = lowest(system.product, solution.bad, steps)
    value = torch.where(rows, ritz.value, torch.inf)
    t = int(value.argmin())
    curvature = ritz.value[t].item()
    size = max(ritz.highest[t].item(), solution.spectrum.highest.nan_to_num(0.0)[t].item(), abs(curvature))
    # Twice what was seen: the least eigenvalue is then as far above 0 as it was below it.
    needed = 2 * (max(-curvature, 0.0) + ritz.residual[t].item()) + tiny(ritz.vector) ** 0.5 * size
    one = ritz.vector[t] if here.inputs.form.tasks is not None else ritz.vector
    alone = torch.zeros_like(ritz.vector)
    alone[t] = one if one.ndim == 1 else one[0]
    direction = {k: v[t] if here.inputs.form.tasks is not None else v for k, v in here.tensors(alone).items()}
    raise NegativeCurvatureError(
        f"train_loss at theta_star{_of_task(here, t)}: expected a positive definite Hessian, for {solver}; got a "
        f"direction of curvature {curvature:.3g} (of up to {size:.3g}): theta_star is no minimum, or only one of many "
        f"along it. Run the inner loop longer, add damping={needed:.2g} more, or make the problem proximal with that "
        f"strength (gimli.proximal). {UNROLL}",
        direction,
        curvature,
        needed,
    )


def refuse_unconverged_loop(report: ImplicitReport, tolerance: float) -> None:
    """Raise where the inner loop's distance from its fixed point changes the result by more than was allowed."""
    if not report.inner.relative <= tolerance:
        raise NotConvergedError(
            f"theta_star: expected a fixed point of the inner loop; got ||grad ell|| = "
            f"{report.inner_gradient.max().item():.2g}, about {report.inner_step.max().item():.2g} away from one, "
            f"which changes the result by {report.inner.relative:.0%} (inner_tolerance is {tolerance:.0%}). "
            f"Run the inner loop longer. {UNROLL}"
        )


def _of_task(here: FixedPoint, t: int) -> str:
    return "" if here.inputs.form.tasks is None else f", task {t}"
