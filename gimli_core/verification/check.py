"""One number held against one oracle, and the verdict."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from gimli_core.verification.question import Key, label

__all__ = ["Check", "ErrorBounds", "Verdict", "judge"]

UNCERTAINTIES = 10  # of an oracle's own that are granted


class Verdict(Enum):
    OK = "ok"
    NOISE = "within the noise"  # of a low precision: agreement cannot be told more closely
    BELOW = "less than the noise"  # of a low precision, which is all that can be told of an entry that small
    DISAGREES = "DISAGREES"
    UNDEFINED = "undefined here"  # the oracle is not finite
    INCONCLUSIVE = "inconclusive"  # the oracle's uncertainty is too large


class Check(NamedTuple):
    """One entry of a meta-gradient against one oracle."""

    subject: str  # "engine" or "claimed"
    key: Key
    oracle: str
    value: float  # the number, or the norm of a tensor (for finite differences: of the slopes)
    expected: float  # likewise, by the oracle
    error: float  # largest difference, relative to the oracle's largest element
    uncertainty: float  # the oracle's own, relative likewise
    allowed: float  # relative likewise
    verdict: Verdict

    @property
    def name(self) -> str:
        return label(self.key)

    @property
    def family(self) -> str:
        """The oracle without its particulars."""
        return self.oracle.split(",")[0]

    @property
    def applied(self) -> float:
        """The error up to which the entry agrees, relative likewise: what is allowed and ten uncertainties, since those
        are estimates."""
        return self.allowed + UNCERTAINTIES * self.uncertainty

    @property
    def reason(self) -> str:
        """Why nothing could be said, where nothing could."""
        if self.verdict is Verdict.UNDEFINED:
            return "the oracle is not finite"
        if self.verdict is not Verdict.INCONCLUSIVE:
            return ""
        if UNCERTAINTIES * self.uncertainty >= self.allowed:
            return f"the oracle may err by {UNCERTAINTIES * self.uncertainty:.2g} of the entry"
        return f"rounding alone may be {self.allowed:.2g} of the entry"

    def __str__(self) -> str:
        value, expected = f"{self.subject} {self.name} = {self.value:.6g}", f"{self.oracle} gives {self.expected:.6g}"
        return f"{value} where {expected} (relative error {self.error:.1e})"


class ErrorBounds(NamedTuple):
    """How far apart a value and what an oracle says of it may be: absolute bounds of an element's error."""

    uncertainty: float  # of the oracle
    allowed: float  # what rounding alone does
    scale: float  # the natural size of the entry
    low: bool = False  # whether the precision is so low that nothing is known to a percent


def judge(
    subject: str,
    key: Key,
    oracle: str,
    value: Tensor,
    expected: Tensor,
    error: ErrorBounds,
) -> Check:
    """Compare elementwise.

    Ten uncertainties are granted, since they are estimates. Where they, or what rounding alone does, exceed a percent
    both of the entry and of its natural `scale`, nothing can be said; nor can an oracle confirm an entry of which it
    cannot see a percent. In a `low` precision nothing is known to a percent: an entry then agrees within the noise, if
    that does not exceed all of it; one that is less than the noise is told so, where that is less than a percent of
    its natural scale.
    """
    uncertainty, allowed, scale, low = error
    told = 1.0 if low else 0.01  # how much of an entry may be unknown
    value, expected = value.detach().to("cpu", torch.float64), expected.detach().to("cpu", torch.float64)
    size, difference = _largest(expected), _largest(value - expected)
    bound = allowed + UNCERTAINTIES * uncertainty
    if not (math.isfinite(size) and math.isfinite(bound)):
        verdict = Verdict.UNDEFINED
    elif not math.isfinite(difference):
        verdict = Verdict.DISAGREES
    elif bound > max(told * size, 0.01 * scale):
        verdict = Verdict.INCONCLUSIVE
    elif difference > bound:
        verdict = Verdict.DISAGREES
    elif difference > allowed and UNCERTAINTIES * uncertainty > told * size:
        verdict = Verdict.INCONCLUSIVE
    elif low:
        verdict = Verdict.NOISE if bound <= size else Verdict.BELOW
    else:
        verdict = Verdict.OK

    def relative(x: float) -> float:
        return 0.0 if x == 0 else x / size if size else math.inf

    return Check(
        subject,
        key,
        oracle,
        _summary(value),
        _summary(expected),
        relative(difference),
        relative(uncertainty),
        relative(allowed),
        verdict,
    )


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _summary(x: Tensor) -> float:
    return x.item() if x.numel() == 1 else torch.linalg.vector_norm(x).item()
