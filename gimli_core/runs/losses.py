"""The losses of one run; a step that is run again must have the loss that it had."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.finite import flaw
from gimli_core.errors import NotFiniteError, ReplayError
from gimli_core.runs.outcome import reduced, weighted

__all__ = ["Losses"]


class Losses:
    """l_0 … l_{j-1} in `train`, each of shape [] or, of tasks, [T]; L_val(theta_j) by step in `val`."""

    def __init__(self) -> None:
        self.train: list[Tensor] = []
        self.val: dict[int, Tensor] = {}

    def note(self, j: int, loss: Tensor, *, exact: bool) -> None:
        """Keep the loss of a first run; hold a replay against it.

        Args:
            exact: whether the same operations were run, so that on a CPU the bits must be the same; atomic additions
                on an accelerator, forward mode or another compiled function may change the last ones.

        Raises:
            ReplayError: another loss than at the first run.
        """
        if j == len(self.train):
            self.train.append(loss)
            return
        first = self.train[j]
        if exact and loss.device.type == "cpu":
            same = torch.equal(first, loss)
        elif loss.ndim == 0:
            same = math.isclose(first.item(), loss.item(), rel_tol=1e-3, abs_tol=1e-8)
        else:
            same = torch.allclose(first, loss, rtol=1e-3)
        if not same:
            raise ReplayError(
                f"train_loss at inner step j = {j}: expected {first.tolist()!r} again when the step is replayed; "
                f"got {loss.tolist()!r}. "
                "Make the loss a function of its arguments, torch's global generator and module buffers, let no other "
                "thread draw from the global generators or change these buffers during the run, or use "
                "memory=RetainGraphs() and second_order='reverse_over_reverse'."
            )

    def outer(self, inputs: Inputs) -> Tensor:
        """L = Σ_j w_j L_val(theta_j), summed or averaged over tasks."""
        return reduced(inputs.form, weighted(inputs.values.weights, self.val))

    def check_outer(self, inputs: Inputs) -> None:
        """Raise `NotFiniteError` unless L is finite."""
        L = self.outer(inputs)
        if not bool(torch.isfinite(L).all()):
            broken = torch.isfinite(L).logical_not().nonzero().flatten().tolist()
            came = f"{L.item():g}" if L.ndim == 0 else f"{L[broken[0]].item():g} for outer loss {broken[0]} of {len(L)}"
            raise NotFiniteError(
                f"val_loss: expected a finite number; got {came}, though theta_{inputs.form.steps} is finite. "
                f"{flaw(inputs.values.val_batch)}Look at val_loss and val_batch."
            )
