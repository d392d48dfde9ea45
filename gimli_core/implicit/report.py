"""What an implicit gradient says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gimli_core.notation import Tensors
from gimli_core.results import MetaGradient

__all__ = ["ErrorBar", "ImplicitGradient", "ImplicitReport"]


@dataclass(frozen=True, eq=False)
class ErrorBar:
    """How far off a result may be for one reason, in its own units: each entry like that of the result, without
    sign."""

    A_loss: Tensors
    B_0: Tensors
    relative: float  # the length of all of it, over the length of the result

    def __repr__(self) -> str:
        return f"ErrorBar(relative={self.relative:.1e})"


@dataclass(frozen=True, eq=False)
class ImplicitReport:
    """How the system of an implicit gradient was solved, and what that leaves open.

    With T tasks each tensor is `[T]`, else a scalar. `mu` and `kappa` are of H + damping I, or, with a preconditioner
    M, of M⁻¹ (H + damping I): estimates from inside, so that mu is at most and kappa at least what stands here.
    """

    solver: str
    damping: float
    residual: Tensor  # ||b - (H + damping I) v|| / ||b||, computed anew from v
    steps: Tensor  # of the solver
    products: int  # with H in all, those for the error bars included
    mu: Tensor  # the lowest eigenvalue
    kappa: Tensor  # the highest over the lowest
    inner_gradient: Tensor  # ||grad ell(theta_star)||
    inner_step: Tensor  # how far the fixed point is from theta_star, to first order
    solve: ErrorBar  # from the solve
    inner: ErrorBar  # from an inner loop that has not converged
    v: Tensors = field(repr=False)  # the solution, by the names of theta: the next call's warm_start

    def __str__(self) -> str:
        worst = {name: getattr(self, name).double().max().item() for name in ("residual", "kappa", "inner_gradient")}
        advice = ": run the inner loop longer" if self.inner.relative > 10 * max(self.solve.relative, 1e-6) else ""
        return (
            f"error of the result: {self.solve.relative:.1e} from the solve, {self.inner.relative:.1e} from the inner "
            f"loop{advice}\n"
            f"{self.solver}{f', damping {self.damping:g}' if self.damping else ''}: {int(self.steps.max())} steps, "
            f"{self.products} products with the Hessian in all, residual {worst['residual']:.1e}; "
            f"mu <= {self.mu.min().item():.3g}, kappa >= {worst['kappa']:.3g}\n"
            f"theta_star: ||grad ell|| = {worst['inner_gradient']:.1e}, the fixed point about "
            f"{self.inner_step.max().item():.1e} away"
        )


@dataclass(frozen=True, eq=False, repr=False)
class ImplicitGradient(MetaGradient):
    """A `MetaGradient` at a fixed point, with a report of how it was solved.

    `theta_J` is theta_star, `train_losses` has its one inner loss, and S_0 is 0: where the loop began is forgotten.
    B_0 is 0 too, but for the centre of a proximal problem.
    """

    report: ImplicitReport = field(kw_only=True)

    def __repr__(self) -> str:
        return (
            f"ImplicitGradient(val_loss={self.val_loss.item():.6g}, A_loss: {list(self.A_loss)}, B_0: "
            f"{list(self.B_0)}, error {self.report.solve.relative:.0e} (solve) + {self.report.inner.relative:.0e} "
            f"(inner loop){f', approximation={self.approximation!r}' if self.approximation else ''})"
        )
