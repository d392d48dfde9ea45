"""The losses of one run; a step that is run again must have the loss that it had."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.beside_loss import check_alike
from gimli_core.derivatives.finite import at_once, finite, flaw
from gimli_core.derivatives.first_order import Gradient
from gimli_core.errors import NotFiniteError, ProcessError, ReplayError
from gimli_core.processes.collectives import everyones
from gimli_core.processes.mesh import Ranks
from gimli_core.runs.outcome import reduced, weighted

__all__ = ["Losses"]


class Losses:
    """l_0 … l_{j-1} in `train`, each of shape [] or, of tasks, [T]; L_val(theta_j) by step in `val`."""

    def __init__(self) -> None:
        self.train: list[Tensor] = []
        self.val: dict[int, Tensor] = {}
        self.train_aux: list[Any] = []
        self.val_aux: dict[int, Any] = {}
        self.regrouped = False  # whether some were summed over other parts of batches, and may end in other bits
        self._outer: Tensor | None = None
        self._replayed: list[tuple[int, Tensor, Tensor]] = []  # step, its loss, whether it is the first run's

    def note_inner(self, j: int, G_j: Gradient, *, exact: bool) -> None:
        """`note` of the step's loss, and its aux if it is the first run. Raises ArgumentError for one of other form."""
        if j == len(self.train_aux):
            if self.train_aux and (G_j.aux is not None or self.train_aux[0] is not None):
                check_alike(G_j.aux, self.train_aux[0], "the aux of train_loss", f"inner step j = {j}")
            self.train_aux.append(G_j.aux)
        self.note(j, G_j.loss, exact=exact)

    def note_outer(self, j: int, L: Gradient) -> None:
        """Keep L_val(theta_j), and its aux. Raises ArgumentError for one of other form."""
        self.val[j], self._outer = L.loss, None
        for before in self.val_aux.values():
            check_alike(L.aux, before, "the aux of val_loss", f"theta_{j}")
        self.val_aux[j] = L.aux

    def aux(self) -> tuple[Any, Any]:
        """(aux of the inner losses, of the outer ones), stacked in the order of the steps; None where there is none."""
        outer = [self.val_aux[j] for j in sorted(self.val_aux)]
        return tuple(
            pytree.tree_map(lambda *leaves: torch.stack(leaves), *each) if each and each[0] is not None else None
            for each in (self.train_aux, outer)
        )  # type: ignore[return-value]

    def note(self, j: int, loss: Tensor, *, exact: bool) -> None:
        """Keep the loss of a first run; hold a replay against it.

        Args:
            exact: whether the same operations were run, so that on a CPU the bits must be the same; atomic additions
                on an accelerator, forward mode or another compiled function may change the last ones.

        Raises:
            ReplayError: another loss than at the first run; by `check_replays`, once all are there, if a look now would
                stall the device.
        """
        if j == len(self.train):
            self.train.append(loss)
            return
        first = self.train[j]
        to_the_bit = exact and not self.regrouped and loss.device.type == "cpu"
        same = (first == loss if to_the_bit else torch.isclose(first, loss, rtol=1e-3, atol=1e-8)).all()
        if not at_once(loss.device):
            self._replayed.append((j, loss, same))
        elif not bool(same):
            raise self._another(j, loss)

    def check_replays(self) -> None:
        """Raise `ReplayError` for the first replay that was not looked at and had another loss."""
        replayed, self._replayed = self._replayed, []
        if replayed and not bool(torch.stack([same for *_, same in replayed]).all()):
            raise next(self._another(j, loss) for j, loss, same in replayed if not bool(same))

    def check_ranks(self, ranks: Ranks) -> None:
        """Raise `ProcessError` on all ranks that share theta unless all have had the same losses.

        Where a batch, a random number or a machine gave one rank another loss, its pieces belong to another gradient.
        Cost: one all_gather_object.
        """
        losses = {f"train_loss at inner step j = {j}": loss for j, loss in enumerate(self.train)}
        losses |= {f"val_loss at theta_{j}": loss for j, loss in self.val.items()}
        every = everyones(ranks, [repr(loss.tolist()) for loss in losses.values()], "losses")
        for other, theirs in enumerate(every):
            for name, loss, first in zip(losses, theirs, every[0], strict=True):
                if loss != first:
                    raise ProcessError(
                        f"{name}: expected the same on all ranks that share theta; got {first} on rank 0 and {loss} on "
                        f"rank {other}. Hand all ranks the same batches, and draw from torch's generator alone."
                    )

    def _another(self, j: int, loss: Tensor) -> ReplayError:
        return ReplayError(
            f"train_loss at inner step j = {j}: expected {self.train[j].tolist()!r} again when the step is replayed; "
            f"got {loss.tolist()!r}. "
            "Make the loss a function of its arguments, torch's global generator and module buffers, let no other "
            "thread draw from the global generators or change these buffers during the run, or use "
            "memory=RetainGraphs() and second_order='reverse_over_reverse'."
        )

    def outer(self, inputs: Inputs) -> Tensor:
        """L = Σ_j w_j L_val(theta_j), summed or averaged over tasks."""
        if self._outer is None:
            self._outer = reduced(inputs.form, weighted(inputs.values.weights, self.val))
        return self._outer

    def check_outer(self, inputs: Inputs) -> None:
        """Raise `NotFiniteError` unless L is finite."""
        L = self.outer(inputs)
        if not finite(L):
            broken = torch.isfinite(L).logical_not().nonzero().flatten().tolist()
            actual = (
                f"{L.item():g}" if L.ndim == 0 else f"{L[broken[0]].item():g} for outer loss {broken[0]} of {len(L)}"
            )
            raise NotFiniteError(
                f"val_loss: expected a finite number; got {actual}, though theta_{inputs.form.steps} is finite. "
                f"{flaw(inputs.values.last_val_batch)}Look at val_loss and val_batch."
            )
