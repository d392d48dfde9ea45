"""One line of Algorithm 1 as it ran, open to a change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.step_through.interventions import Intervention
from gimli_core.step_through.page.summaries import norm, total
from gimli_core.trees import tensors

__all__ = ["Moment"]


@dataclass(frozen=True, eq=False, repr=False)
class Moment:
    """One line of Algorithm 1 as it ran.

    `values` are keyed by the paper's symbols, with the index that the line gives them: at line 6 of step j,
    "theta" is theta_{j+1}; at line 14, "B" is B_j, and "direct" and "curvature" are its two terms. `given` is
    what the line used.
    """

    line: int
    j: int
    values: dict[str, Any]
    inputs: Mapping[str, Any]
    replay: bool  # the step had been run before: the memory schedule runs it again
    seconds: float  # what the engine took to come here from the line before
    interventions: tuple[Intervention, ...]  # all that were made before this moment; it may follow from them
    _change: Callable[[Moment, str, Any], None]
    _optimizer: Optimizer

    @property
    def bytes(self) -> int:
        """The size of what was computed."""
        return sum(t.numel() * t.element_size() for t in tensors(self.values))

    @property
    def O(self) -> Tensors:  # noqa: E743 - the paper's letter
        """O_j = dtheta'/dG at line 11: its diagonal, which is all of it for an elementwise rule. Cost: one pullback."""
        if self.line != 11:
            raise unexpected("O", "a moment at line 11", f"one at line {self.line}", "O_j belongs to line 11.")
        used, ones = self.inputs, {k: torch.ones_like(v) for k, v in self.inputs["B"].items()}
        none = self._optimizer.zero_adjoint(used["s"])
        return self._optimizer.pullback(used["theta"], used["s"], used["G"], used["phi_opt"], ones, none, ()).V

    def change(self, name: str, value: Any) -> None:
        """Put `value` in place of the one computed, and let the engine go on from there.

        The change counts as a constant: the sweep differentiates the run that follows, with the Jacobians at
        the changed values. A replay of the same line is given the same value again. A tensor that the step's loss does
        not use is left alone, unless its "G" is changed from 0: then it takes the step, and it counts.

        Args:
            name: "G" at line 5; "theta", "s" at 6; "B", "S" at 9 and 14; "V" at 11; "A_opt" at 12; "A_loss" at 13.
            value: in the form of `values[name]`; a dict may name only the entries that change.

        Raises:
            ArgumentError: a name that this line does not compute, another form or shape.
        """
        self._change(self, name, value)

    def __repr__(self) -> str:
        again = ", replay" if self.replay else ""
        after = f", after {len(self.interventions)} interventions" if self.interventions else ""
        shown = ", ".join(_shown(name, list(tensors(tree))) for name, tree in self.values.items())
        return f"Moment(line={self.line}, j={self.j}, {shown}{again}{after})"


def _shown(name: str, parts: list[Tensor]) -> str:
    """A number as it is, anything else by its norm."""
    if len(parts) == 1 and parts[0].numel() == 1:
        return f"{name}={parts[0].item():.6g}"
    return f"|{name}|={total([norm(t) for t in parts]):.6g}" if parts else name
