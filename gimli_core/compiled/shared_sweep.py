"""Lines 11-14 of one step for several outer losses: G_j and what its derivative needs once, the rest for each.

The sweep of a step is cut where B and S come in (split_function.py), and its late half is called for each outer loss.
Cost: 6F, and 6F for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled import pure_steps
from gimli_core.compiled.compiler.split_function import Halves, Joined
from gimli_core.compiled.compiler.trees_in_source import builder, taker
from gimli_core.compiled.pure_steps import Along, Fixed, Swept, rows
from gimli_core.notation import State, Tensors
from gimli_core.optimizers.seen import seeing
from gimli_core.outlines import fits, outline
from gimli_core.record import Adjoint

__all__ = ["SharedSweep", "in_rows"]


class SharedSweep:
    """`pure_steps.sweep` at one point along several (B, S).

    Args:
        fixed: what it is compiled for.
        inputs: whose environment it may read.
        arguments: of `pure_steps.sweep`: (theta, s, phi_loss, frozen, hyper, batch, along).
        options: of the compiler.

    Raises:
        Uncompiled: with the reason; Uncut, where it draws random numbers, too.
    """

    def __init__(self, fixed: Fixed, inputs: Inputs, arguments: tuple[Any, ...], **options: Any) -> None:
        self._fixed = fixed
        self._batch = outline(arguments[5])
        self._early, self._late = taker(arguments[:6]), taker(tuple(arguments[6]))
        early, late = in_rows(self._early(arguments[:6])), in_rows(self._late(arguments[6]))

        def sweep(*arguments: Any) -> Any:
            swept = pure_steps.sweep(fixed, *arguments)
            return swept.loss, rows(swept[1:])

        trial = builder(arguments)([*early, *late])
        self._halves = Halves(sweep, inputs.environment, trial, len(late), **options)
        self.seconds = self._halves.seconds
        self._build = builder(self._halves.results[1])

    def look(self, arguments: tuple[Any, ...], B: Tensors, S: State) -> Joined:
        """Does what was compiled still fit? If not, compile again. Computes nothing. Raises Uncompiled."""
        return self._halves.look([*in_rows(self._early(arguments)), *in_rows(self._late((B, S)))])

    def __call__(self, arguments: tuple[Any, ...], adjoints: Sequence[Adjoint]) -> Iterator[Swept]:
        """What the sweep returns along each of `adjoints`, from (theta, s, phi_loss, frozen, hyper, batch)."""
        if not fits(arguments[5], self._batch):
            yield from self._uncompiled(arguments, adjoints)
            return
        joined = self.look(arguments, adjoints[0].B, adjoints[0].S)
        (loss,), kept = joined.first(in_rows(self._early(arguments)))
        for A in adjoints:
            yield Swept(loss, *self._build(joined.second(kept, in_rows(self._late((A.B, A.S))))))

    def _uncompiled(self, arguments: tuple[Any, ...], adjoints: Sequence[Adjoint]) -> Iterator[Swept]:
        theta, s, phi_loss, frozen, hyper, batch = arguments
        with torch.no_grad():
            G, pull, loss = pure_steps.linearised(self._fixed, theta, phi_loss, frozen, batch)
            hyper = seeing(self._fixed.optimizer, hyper, loss)
            for A in adjoints:
                yield Swept(
                    loss, *pure_steps.lines_11_to_14(self._fixed, theta, s, hyper, G, loss, pull, Along(A.B, A.S))
                )


def in_rows(leaves: Sequence[Any]) -> list[Any]:
    """The leaves, every tensor, of any shape, in rows without gaps."""
    return [x.contiguous() if isinstance(x, Tensor) else x for x in leaves]
