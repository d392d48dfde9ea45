"""A consumer of a run's events: how the norm of B_j goes along the sweep."""

from __future__ import annotations

import math
import warnings

import torch

from gimli_core.record import Event

__all__ = ["AdjointNorms"]


class AdjointNorms:
    """||B_j|| along the sweep; warns once when it explodes or vanishes, with the step.

    Pass it as `watch=`; afterwards `norms` is `{j: ||B_j||}`, of several outer losses that of all their B_j together.

    Args:
        ratio: how far ||B_j|| may go above ||B_J||, or below it, before the warning.

    Cost: one pass over B a step.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem, norms = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5)), gimli.AdjointNorms()
    >>> _ = gimli.meta_gradient(problem, {"w": torch.zeros(1)}, [torch.ones(1)] * 2, torch.ones(1), watch=norms)
    >>> norms.norms
    {2: 0.25, 1: 0.125, 0: 0.0625}
    """

    def __init__(self, ratio: float = 1e6) -> None:
        self.ratio = ratio
        self.norms: dict[int, float] = {}
        self._warned = False
        self._squares = 0.0  # of the outer losses before this one

    def __call__(self, event: Event) -> None:
        if event.line not in (9, 14):
            return
        norms = torch._foreach_norm([b.detach() for b in event.values["B"].values()])
        norm = torch.stack([n.double() for n in norms]).norm().item()
        if event.rows > 1:
            self._squares = norm**2 + (self._squares if event.row else 0.0)
            norm = math.sqrt(self._squares)
            if event.row < event.rows - 1:
                return
        if event.line == 9 and event.j >= max(self.norms, default=0):  # a new sweep; later ones add L_val along the way
            self.norms, self._warned = {}, False
        self.norms[event.j] = norm
        first = next(iter(self.norms.values()))
        if self._warned or first == 0 or first / self.ratio <= norm <= first * self.ratio:
            return
        self._warned = True
        what = "vanishes" if norm < first else "explodes"
        warnings.warn(
            f"||B_j|| {what}: {norm:.3g} at j = {event.j}, against {first:.3g} at J = {next(iter(self.norms))}. "
            "Earlier steps count for "
            + ("almost nothing; fewer may do." if norm < first else "too much; lower the learning rate or the steps."),
            RuntimeWarning,
            stacklevel=2,
        )
