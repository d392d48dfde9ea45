"""Lines 8 and 9, compiled: L_val, and its gradient for each outer loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_losses
from gimli_core.compiled.compiler.compiled_function import Kernel
from gimli_core.compiled.pure_steps import Fixed, Validated, validate
from gimli_core.derivatives.first_order import Gradient
from gimli_core.notation import Tensors

__all__ = ["CompiledValidation"]


class CompiledValidation:
    """The gradient of L_val or, where that is a vector, of `along · L_val`. Raises Uncompiled, with the reason.

    Attributes:
        outer_losses: k, or None where val_loss returns one number.
        seconds: of compiling.
    """

    def __init__(self, fixed: Fixed, inputs: Inputs, theta: Tensors, **options: Any) -> None:
        def function(*arguments: Any) -> Validated:
            return validate(fixed, *arguments)

        self.outer_losses = outer_losses(inputs)
        val_batch = inputs.values.last_val_batch
        arguments = self._arguments(inputs, val_batch, theta, self._units(theta)[0])
        self._kernel = Kernel("val_loss", function, inputs.environment, arguments, val_batch, **options)
        self.seconds = self._kernel.seconds

    def begin(self) -> None:
        """A run begins."""
        self._kernel.begin()

    def look(self, inputs: Inputs, theta: Tensors) -> None:
        """Does what was compiled still fit? Raises Uncompiled."""
        batch = inputs.values.last_val_batch
        self._kernel.look(batch, *self._arguments(inputs, batch, theta, self._units(theta)[0]))

    def __call__(
        self, inputs: Inputs, batch: Any, theta: Tensors, along: Tensor | None = None, *, rows: bool = True
    ) -> tuple[Gradient, list[Gradient]]:
        """(L_val, the gradient of each outer loss, or of `along · L_val`; of several without `rows` none).

        Cost: 3F for each, and for none.
        """
        several, environment = self.outer_losses is not None, inputs.environment
        each = [along] if several and along is not None else self._units(theta)
        wanted = each if rows or along is not None or not several else each[:1]
        gradients, met = [], environment.capture() if len(wanted) > 1 else None
        for row, e in enumerate(wanted):
            if met is not None and row:
                environment.restore(met)
            done: Validated = self._kernel(batch, *self._arguments(inputs, batch, theta, e))
            gradients.append(Gradient(done.loss, done.theta, done.phi_loss, None))
        return gradients[0], gradients if rows or along is not None or not several else []

    def _units(self, theta: Tensors) -> list[Tensor | None]:
        """What picks out each outer loss."""
        if self.outer_losses is None:
            return [None]
        first = next(iter(theta.values()))
        return list(torch.eye(self.outer_losses, dtype=first.dtype, device=first.device))

    def _arguments(self, inputs: Inputs, batch: Any, theta: Tensors, along: Tensor | None) -> tuple[Any, ...]:
        arguments = (theta, inputs.values.phi_loss, inputs.values.frozen, batch)
        return arguments if along is None else (*arguments, along)
