"""A moment that a cursor has passed, kept so that it can go back to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Kept"]


@dataclass
class Kept:
    """A moment that was passed."""

    number: int
    line: int
    j: int
    replay: bool
    backward: bool
    seconds: float
    bytes: int
    norms: dict[str, float]  # of what the line computed
    names: dict[str, Any] | None  # every quantity as last computed; None where it was let go
    fresh: tuple[str, ...] = field(default=())
