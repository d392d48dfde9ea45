"""The meta-gradient at the inner loop's end, taken for a fixed point: by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gimli_core.arguments.batches import check_batches, check_val_batch
from gimli_core.errors import check_switch, unexpected
from gimli_core.implicit import Solver, implicit_gradient
from gimli_core.meta_parameters.marks import tensor_paths
from gimli_core.notation import Tensors
from gimli_core.outer_loop.estimators.inner import Inner, InnerLoop, walked
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient
from gimli_core.transforms.nested import nested
from gimli_core.unroll import gradient_at, tied_tensors

__all__ = ["Implicit"]


class Implicit:
    """dL/dphi at the fixed point that the inner loop has come to, without its path.

    The inner loop is run forwards; its theta_J stands for theta_star in `gimli.implicit_gradient`. Left out is what of
    dL/dphi goes through the path: nothing where the loop has converged, and the result's `report` says how far it is
    from that. A loop that has not converged is an error that says so.

    Args:
        problem, phi, inner, arguments: as for `gimli.Unrolled`. The inner loss is that of the last step's batch: give
            one batch for all steps. Hyperparameters of the rule cannot be learned: their derivative is 0 here.
            With `gimli.proximal(problem, …)` the start is learned as in iMAML.
        solver, damping, inner_tolerance: as for `gimli.implicit_gradient`.
        warm_start: begin the solve from the last one's solution: where outer steps work on the same data.

    Raises:
        ArgumentError, and when it is called what `gimli.implicit_gradient` raises.

    Cost: 3F·J forwards and the solver's 6F a step; memory does not grow with J.
    Source: Rajeswaran et al. 2019; Lorraine et al. 2020.

    >>> import torch, gimli_core as gimli
    >>> def train_loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2 + phi["l2"] * (theta["w"] ** 2).sum() / 2
    >>> def val_loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(train_loss, val_loss, gimli.optimizers.SGD(lr=0.5))
    >>> phi = {"l2": torch.tensor(1.0, requires_grad=True)}
    >>> def inner(phi, target):
    ...     return {"theta_0": {"w": torch.zeros(2)}, "train_batches": lambda j: target, "val_batch": target,
    ...             "phi_loss": phi}
    >>> gimli.Implicit(problem, phi, inner, steps=30)(torch.ones(2)).A["l2"]     # as in gimli.implicit_gradient
    tensor(0.2500)
    """

    def __init__(
        self,
        problem: Problem,
        phi: Mapping[str, Tensor],
        inner: Inner,
        *,
        solver: Solver | None = None,
        damping: float = 0.0,
        inner_tolerance: float = 0.1,
        warm_start: bool = False,
        **arguments: Any,
    ) -> None:
        check_switch("warm_start", warm_start)
        self._loop = InnerLoop(problem, phi, inner, arguments)
        self._options: dict[str, Any] = {"solver": solver, "damping": damping, "inner_tolerance": inner_tolerance}
        self._warm_start = warm_start
        self._v: Tensors | None = None  # the last solution

    def parameters(self) -> Mapping[str, Tensor]:
        """phi."""
        return self._loop.phi

    def __call__(self, drawn: Any) -> MetaGradient:
        """Run the inner loop, then solve at its end."""
        call = self._loop.call(self._loop.phi, drawn)
        if any(t.requires_grad for _, t in tensor_paths(call.phi_opt or {})):
            do = "Learn the rule's hyperparameters with gimli.Unrolled."
            actual = "tensors that require grad: their derivative is 0 at a fixed point"
            raise unexpected("phi_opt", "numbers, for an implicit gradient", actual, do)
        if call.val_weights is not None:
            do = "Leave it out: there is only L_val(theta_star)."
            raise unexpected("val_weights", "None, for an implicit gradient", "weights", do)
        trajectory, form = walked(call)
        batch, J = check_batches(call.train_batches, call.steps)
        result = implicit_gradient(
            call.problem,
            trajectory.theta_J,
            batch(max(J - 1, 0)),
            check_val_batch(call.val_batch, J)(J),
            phi_loss=call.phi_loss,
            theta_0=call.theta_0,
            warm_start=self._v if self._warm_start else None,
            state_star=trajectory.state_J,
            second_order=call.second_order,
            tasks=call.tasks,
            check=call.check,
            **self._options,
        )
        result = replace(result, A_loss=nested(result.A_loss, call.nested))
        self._v = result.report.v if self._warm_start else None
        paths = tied_tensors(replace(call, phi_opt=None, state_0=None), form)
        tied = ((t, gradient_at(result, form.scale, path, t)) for path, t in paths)
        return self._loop.finish(result, tied, "the fixed point")

    def state_dict(self) -> dict[str, Any]:
        """The solution that the next solve begins from."""
        return {"v": self._v}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._v = state["v"]

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"Implicit({self._loop!r}, {options})"
