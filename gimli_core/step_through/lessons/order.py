"""The order in which the lessons are read."""

from __future__ import annotations

from typing import Any

__all__ = ["ORDER", "place_of"]

ORDER = (
    "quadratic",
    "momentum",
    "adam",
    "maml",
    "exploding",
    "example_weights",
    "copied",
    "implicit_rate",
    "checkpoints",
    "tasks",
)


def place_of(name: str) -> dict[str, Any]:
    """A lesson's number and the next one's name, for its page; nothing for one that is not in the order."""
    if name not in ORDER:
        return {}
    number = ORDER.index(name) + 1
    after = ORDER[number : number + 1]
    return {"number": [number, len(ORDER)], **({"next": {"name": after[0], "title": after[0]}} if after else {})}
