"""What came out of an experiment, as it is printed and as a file holds it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gimli_core.errors import unexpected
from gimli_core.few_shot.method import Evaluation
from gimli_core.few_shot.protocol import Protocol
from gimli_core.memory.atomic_file import writing

__all__ = ["Outcome", "read_outcome"]


@dataclass(frozen=True)
class Outcome:
    """What came out, as a file holds it."""

    method: str
    accuracy: Evaluation
    paper: str  # its figure, or why there is none
    protocol: Protocol
    differences: tuple[str, ...]  # of the protocol from the paper's
    by_instance: tuple[float, ...] = ()  # MANN's
    baselines: tuple[str, ...] = ()  # of a learned rule: SGD's in its place

    def __str__(self) -> str:
        lines = [f"{self.method}: {self.accuracy}; the paper: {self.paper}", "protocol:", str(self.protocol)]
        if self.by_instance:
            lines.append("right at the 1st, 2nd, … row of a class: " + " ".join(f"{x:.1f}" for x in self.by_instance))
        lines += self.baselines
        if self.differences:
            lines += ["differs from the paper's in", *(f"  {line}" for line in self.differences)]
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """As JSON; whole or not at all."""
        fields = {**asdict(self), "accuracy": self.accuracy._asdict()}
        with writing("--out", path) as file:
            file.write(json.dumps(fields, indent=1).encode())


def read_outcome(path: Path) -> Outcome:
    """What `save` wrote. Raises ArgumentError."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(
            fields["method"],
            Evaluation(**fields["accuracy"]),
            fields["paper"],
            Protocol(**fields["protocol"]),
            tuple(fields["differences"]),
            tuple(fields["by_instance"]),
            tuple(fields.get("baselines", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unexpected(str(path), "a result of `gimli few-shot`", str(error), "Remove it.") from None
