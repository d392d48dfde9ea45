"""How far two right answers may lie apart: the tolerance, and what rounding alone does to this problem."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gimli_core.environment import Environment
from gimli_core.verification.oracles.autograd_through_the_graph import Totals, autograd_gradient, random_rounding
from gimli_core.verification.oracles.plain_rules import Root, flat_root
from gimli_core.verification.precision import name_of
from gimli_core.verification.question import VAL_LOSS, Entries, Key, Question, label

__all__ = ["Bounds"]

PROBES, MARGIN = 2, 16
# In a low precision a probe moves everything as far as the losses' own rounding does, and oracles in float64 have none.
MARGIN_LOW = 4


class Bounds:
    """The plain unroll's answer, and for each of its quantities the error that is allowed.

        allowed = tolerance · |quantity|  +  16 · max over two probes of |change|

    A probe is the same unroll with every theta_j, G_j and s_j moved at random by one unit in the last place
    of the engine's dtype, and every hyperparameter by one of float64, which 1 - beta^t magnifies; |·| is the largest
    element. The second term is the conditioning bound: it counts where
    rounding moves the result that much, through cancellation or through a chaotic loop.

    Args:
        question: what the oracles answer, in float64 where that is possible.
        dtype: what the engine worked in, or the losses, where that is less.
        tolerance: relative; by default 1e-10, or 1000 units in the last place where that is more. Of a low precision
            those would be all: there only what rounding moves, the noise floor, excuses a difference.
        summed_in: the dtypes of derivatives that are summed in a less precise one than the engine works in, whose units
            theirs are.
    """

    def __init__(
        self,
        question: Question,
        environment: Environment,
        dtype: torch.dtype,
        tolerance: float | None,
        summed_in: Mapping[Key, torch.dtype],
    ) -> None:
        self.dtype = dtype
        self.low = dtype.itemsize < 4
        self.margin = MARGIN_LOW if self.low else MARGIN
        units = torch.finfo(torch.float32 if self.low else dtype).eps
        self.tolerance = _of_units(units) if tolerance is None else tolerance
        coarse = summed_in if tolerance is None else {}
        self._coarse = {key: _of_units(torch.finfo(its_dtype).eps) for key, its_dtype in coarse.items()}
        self.strict = self.reference = autograd_gradient(question, environment)
        self.root: Root = torch.sqrt
        if not all(bool(torch.isfinite(g).all()) for g in self.strict.gradient.values()):
            self.root = flat_root
            self.reference = autograd_gradient(question, environment, root=flat_root)
        truth = _quantities(self.reference)
        self._sizes, self._entry_sizes = _largest(truth), _largest(question.entries())
        self.moved = dict.fromkeys(truth, 0.0)
        for seed in range(PROBES):
            rounding = random_rounding(dtype, seed)
            probe = _quantities(autograd_gradient(question, environment, root=self.root, rounding=rounding))
            change = _largest({key: value - truth[key] for key, value in probe.items()})
            self.moved = {key: max(before, change[key]) for key, before in self.moved.items()}

    def allowed(self, key: Key) -> float:
        """The largest difference between an element here and there that rounding excuses."""
        return self._coarse.get(key, self.tolerance) * self._sizes[key] + self.margin * self.moved[key]

    def scale(self, key: Key) -> float:
        """|L| / |x|: with it, a change of x of its own size would change L by its own size."""
        return self._sizes[VAL_LOSS] / (self._entry_sizes.get(key) or 1.0)

    def __str__(self) -> str:
        unit = name_of(self.dtype)
        coarse = "".join(f" ({label(key)}: {allowed:.1e})" for key, allowed in self._coarse.items())
        return (
            f"allowed: {self.tolerance:.1e} relative{coarse}, and {self.margin} times what moving every theta_j, G_j "
            f"and s_j at random by one unit of {unit} changes; for finite differences also 10 times their uncertainty."
        )


def _of_units(eps: float) -> float:
    """1000 units in the last place, or 1e-10 where that is more."""
    return max(1e-10, 1000 * eps)


def _quantities(totals: Totals) -> Entries:
    return {VAL_LOSS: totals.loss, **totals.gradient, **totals.forward, **totals.backward}


def _largest(entries: Entries) -> dict[Key, float]:
    return {key: v.abs().max().item() if v.numel() else 0.0 for key, v in entries.items()}
