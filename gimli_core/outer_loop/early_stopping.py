"""Stop once evaluations no longer get better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real

from torch import Tensor

from gimli_core.errors import closest, listing, unexpected
from gimli_core.notation import Tensors

__all__ = ["EarlyStopping", "Stopping"]


@dataclass(frozen=True)
class EarlyStopping:
    """When an outer loop stops by itself: after `patience` evaluations without a better one.

    At the end phi is what it was at the best evaluation.

    Args:
        patience: evaluations in a row that are not better than the best.
        metric: which number of `evaluate`'s; needed if there are several.
        mode: "min" if less is better, "max" if more is.
        least: by how much an evaluation must be better to count as better.

    Raises:
        ArgumentError: numbers out of range, another word.

    >>> import gimli_core as gimli
    >>> gimli.EarlyStopping(5, "accuracy", mode="max")
    EarlyStopping(patience=5, metric='accuracy', mode='max', least=0.0)
    """

    patience: int
    metric: str | None = None
    mode: str = "min"
    least: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, Integral) or self.patience < 1:
            do = "1 stops at the first evaluation that is not better."
            raise unexpected("EarlyStopping(patience=…)", "a whole number, at least 1", repr(self.patience), do)
        if self.mode not in ("min", "max"):
            do = "'min' for a loss, 'max' for an accuracy."
            raise unexpected("EarlyStopping(mode=…)", "'min' or 'max'", repr(self.mode), do)
        if not isinstance(self.least, Real) or not self.least >= 0:
            raise unexpected("EarlyStopping(least=…)", "a number, at least 0", repr(self.least), "Or leave it out.")

    def value(self, evaluation: Mapping[str, float | None]) -> float | None:
        """The number that decides; None if it is not finite. Raises ArgumentError."""
        if self.metric is None and len(evaluation) == 1:
            return next(iter(evaluation.values()))
        if self.metric is None or self.metric not in evaluation:
            actual = "none, where there are several" if self.metric is None else repr(self.metric)
            do = f"Name one of them.{closest(self.metric, evaluation) if self.metric else ''}"
            raise unexpected("EarlyStopping(metric=…)", f"one of {listing(evaluation)}", actual, do)
        return evaluation[self.metric]


@dataclass(frozen=True, eq=False)
class Stopping:
    """The best evaluation so far, phi there, and how many came after it."""

    best: float | None = None
    step: int = 0
    since: int = 0
    phi: Tensors | None = None

    def after(self, rule: EarlyStopping, value: float | None, step: int, phi: Mapping[str, Tensor]) -> Stopping:
        """After one more evaluation. One that is not finite is not better."""
        sign = 1 if rule.mode == "min" else -1
        if value is not None and (self.best is None or sign * (self.best - value) > rule.least):
            return Stopping(value, step, 0, {name: leaf.detach().clone() for name, leaf in phi.items()})
        return replace(self, since=self.since + 1)
