"""What whoever asks for a run wants of it, besides the call."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gimli_core.arguments.inputs import Inputs

__all__ = ["Wants"]


@dataclass(frozen=True)
class Wants:
    """What whoever asks for a run wants of it."""

    tied: bool = False  # it is tied into autograd: no derivative may be missing
    steps: bool = False  # to be told of every step
    lines: bool = False  # to be told of every line, with tensors by name
    changes: bool = False  # to change what the run goes on with: that is eager
    forward_only: bool = False  # nobody goes backwards
    weighed: bool = False  # `backward` is told how much each outer loss counts, if there are several: one sweep for all
    start: bool = True  # B_0 is asked for
    one_number: str = ""  # who asks, if the meta-gradient of a vector would be too much for them

    @property
    def names(self) -> bool:
        """Whether tensors must stay apart."""
        return self.lines or self.changes

    def of(self, inputs: Inputs) -> Inputs:
        """The inputs; without the first step's V_j Hessian where nobody asks for B_0 or is shown it."""
        if self.start or self.lines or inputs.form.mesh is not None:
            return inputs
        return replace(inputs, form=inputs.form.of_later_steps)
