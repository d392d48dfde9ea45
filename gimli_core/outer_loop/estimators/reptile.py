"""Reptile: towards where the inner loop ends, without any derivative of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gimli_core.errors import listing, unexpected
from gimli_core.meta_parameters.marks import PerTask, unmarked_entries
from gimli_core.notation import Tensors
from gimli_core.outer_loop.estimators.inner import Inner, InnerLoop, walked
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient
from gimli_core.runs.outcome import estimated

__all__ = ["Reptile"]


class Reptile:
    """theta_0 - theta_J in the place of dL/dtheta_0.

        B_0 = (1/T) Σ_t (theta_0 - theta_J^t)

    With plain SGD of rate r as meta-optimizer the outer step is the paper's,
    theta_0 <- theta_0 + r (theta_J - theta_0).
    It is no gradient of the validation loss: to first order in the inner rate it is the sum of the inner gradients,
    and what it adds to that is in their products (section 5 of the paper). L_val is only reported.

    Args:
        problem, phi, inner, arguments: as for `gimli.Unrolled`; all of phi goes into theta_0.

    Raises:
        ArgumentError: something in phi that theta_0 does not depend on: Reptile cannot learn it.

    Cost: 3F·J, in the memory of one step.
    Source: Nichol, Achiam and Schulman 2018, On First-Order Meta-Learning Algorithms.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> phi = {"w": torch.zeros(1, requires_grad=True)}
    >>> def inner(phi, target):
    ...     return {"theta_0": phi, "train_batches": [target] * 2, "val_batch": target}
    >>> gimli.Reptile(problem, phi, inner)(torch.ones(1)).A["w"]    # theta_2 = 1 - (1 - 0.5)^2
    tensor([-0.7500])
    """

    def __init__(self, problem: Problem, phi: Mapping[str, Tensor], inner: Inner, **arguments: Any) -> None:
        self._loop = InnerLoop(problem, phi, inner, arguments)

    def parameters(self) -> Mapping[str, Tensor]:
        """phi."""
        return self._loop.phi

    def __call__(self, drawn: Any) -> MetaGradient:
        """Run the inner loop forwards."""
        call = self._loop.call(self._loop.phi, drawn)
        trajectory, form = walked(call)
        theta_0 = {k: v for k, v in unmarked_entries(call.theta_0).items() if k in form.trained}
        B_0: Tensors = {k: v.detach() - trajectory.theta_J[k] for k, v in theta_0.items()}
        if form.tasks is not None:
            per_task = isinstance(call.theta_0, PerTask)
            B_0 = {k: b * form.scale if per_task else b.sum(0) * form.scale for k, b in B_0.items()}
        result = estimated(trajectory, "Reptile: theta_0 - theta_J in the place of dL/dtheta_0", B_0=B_0)
        result = self._loop.finish(result, ((theta_0[k], b) for k, b in B_0.items()), "Reptile")
        missed = [name for name, leaf in self._loop.phi.items() if leaf.requires_grad and name not in result.A]
        if missed:
            do = "Learn these with gimli.Unrolled, or set their requires_grad to False."
            raise unexpected("phi", "what theta_0 depends on, alone", listing(missed) + " besides", do)
        return result

    def __repr__(self) -> str:
        return f"Reptile({self._loop!r})"
