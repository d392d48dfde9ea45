"""A value held against what each oracle says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from gimli_core.verification.bounds import Bounds
from gimli_core.verification.check import Check, ErrorBounds, judge
from gimli_core.verification.oracles.finite_differences import Slopes
from gimli_core.verification.question import Key

__all__ = ["Answers", "against"]

Answers = Mapping[Key, Tensor | Slopes]


def against(truths: Mapping[str, Answers], subject: str, key: Key, value: Tensor, bounds: Bounds) -> Iterator[Check]:
    """`value` held against each oracle that knows the entry."""
    allowed, scale = bounds.allowed(key), bounds.scale(key)
    for oracle, answers in truths.items():
        truth = answers.get(key)
        if isinstance(truth, Slopes):
            count, longest = truth.directions.shape[0], truth.directions.abs().sum(1).max().item()
            yield judge(
                subject,
                key,
                oracle if count == value.numel() else f"{oracle}, {count} directions",
                truth.of(value),
                truth.values,
                ErrorBounds(truth.uncertainty.max().item(), allowed * longest, scale * longest, bounds.low),
            )
        elif truth is not None:
            uncertainty = 0.0 if bounds.low or oracle in ("closed form", "engine") else bounds.moved[key]
            yield judge(
                subject,
                key,
                oracle,
                value,
                truth,
                ErrorBounds(uncertainty, allowed, scale, bounds.low),
            )
