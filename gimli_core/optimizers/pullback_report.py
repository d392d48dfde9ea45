"""What came of comparing a pullback with its step: every block, and the first that is wrong, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gimli_core.errors import VerificationError

__all__ = ["Entry", "PullbackReport"]


class Entry(NamedTuple):
    """One Jacobian block of one tensor, contracted with a random adjoint of its output."""

    output: str  # "theta" or a slot
    input: str  # "G", "theta", a slot or a hyperparameter
    tensor: str
    error: float  # largest difference, relative to the block's largest entry
    where: tuple[int, ...]
    actual: float
    expected: float
    oracle: str  # "autograd", or "finite differences" where autograd is not finite


@dataclass(frozen=True)
class PullbackReport:
    """Every block that was compared, and the first that is wrong.

    >>> import gimli_core as gimli
    >>> report = gimli.optimizers.check_pullback(gimli.optimizers.SGD(lr=0.1, momentum=0.9))
    >>> report.ok, report.first_wrong
    (True, None)
    """

    optimizer: str
    entries: tuple[Entry, ...]
    tolerance: float

    @property
    def first_wrong(self) -> Entry | None:
        """The first entry beyond the tolerance, or None."""
        return next((e for e in self.entries if not e.error <= self.tolerance), None)

    @property
    def ok(self) -> bool:
        """Whether every entry agrees."""
        return self.first_wrong is None

    @property
    def worst(self) -> float:
        """The largest error."""
        return max((e.error for e in self.entries), default=0.0)

    def assert_ok(self) -> None:
        """Raise `VerificationError`, naming the first wrong entry."""
        if self.first_wrong is not None:
            raise VerificationError(str(self))

    def __str__(self) -> str:
        wrong = self.first_wrong
        if wrong is None:
            agreed = f"{len(self.entries)} blocks, error <= {self.worst:.1e}"
            return f"{self.optimizer}: the pullback agrees with its step in {agreed}"
        at = f"[{', '.join(map(str, wrong.where))}]" if wrong.where else ""
        return (
            f"{self.optimizer}.pullback: d {wrong.output}' / d {wrong.input} of {wrong.tensor!r}{at}: "
            f"expected {wrong.expected!r} ({wrong.oracle}); got {wrong.actual!r}. It is the first of "
            f"{sum(not e.error <= self.tolerance for e in self.entries)} wrong blocks."
        )
