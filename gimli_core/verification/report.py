"""What a verification found: one check for each meta-parameter and oracle, as a table, a dict, or an exception."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gimli_core.errors import VerificationError, printable
from gimli_core.verification.check import Check, Verdict
from gimli_core.verification.localise import Finding

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """The verdicts of `gimli.verify`. Print it, assert it, or turn it into a dict."""

    checks: tuple[Check, ...]
    finding: Finding | None = None  # the first wrong step and quantity, where the engine disagrees
    notes: tuple[str, ...] = ()
    noise: str = ""  # the low precision that the losses compute in, if they do

    @property
    def disagreements(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if c.verdict is Verdict.DISAGREES)

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Entries that no oracle could judge."""
        told = (Verdict.OK, Verdict.NOISE, Verdict.BELOW, Verdict.DISAGREES)
        judged = {(c.subject, c.key) for c in self.checks if c.verdict in told}
        return tuple(dict.fromkeys(f"{c.subject} {c.name}" for c in self.checks if (c.subject, c.key) not in judged))

    @property
    def ok(self) -> bool:
        """Something was checked, nothing disagrees, and at least one oracle confirms every entry."""
        return bool(self.checks) and not self.disagreements and not self.unjudged

    @property
    def headline(self) -> str:
        """One line: agreement, or what is wrong and where it went wrong first."""
        if not self.checks:
            return "not verified: nothing was checked"
        if self.disagreements:
            first = f"first wrong: {self.finding}; " if self.finding else ""
            others = len(self.disagreements) - 1
            return printable(f"DISAGREES: {first}{self.disagreements[0]}") + (f", and {others} more" if others else "")
        if self.unjudged:
            return f"not verified: no oracle could judge {printable(', '.join(self.unjudged))}"
        if self.noise:
            noise = max((c.allowed for c in self.checks if c.verdict is Verdict.NOISE), default=0.0)
            below = dict.fromkeys(c.name for c in self.checks if c.verdict is Verdict.BELOW)
            less = f"; less than it: {printable(', '.join(below))}" if below else ""
            return f"agrees within the noise of {self.noise}: up to {noise:.1e} of an entry{less}"
        return f"ok: {self.entries} entries agree with {', '.join(dict.fromkeys(c.family for c in self.checks))}"

    def of(self, subject: str) -> Report:
        """The checks of "engine" or of "claimed" alone."""
        return replace(self, checks=tuple(c for c in self.checks if c.subject == subject))

    @property
    def entries(self) -> int:
        return len({(c.subject, c.key) for c in self.checks})

    def worst(self, family: str) -> float | None:
        """The largest relative error against one oracle, of what it sees to a percent; None if it was not asked."""
        errors = [c.error for c in self.checks if c.family == family and max(c.uncertainty, c.allowed) < 0.01]
        return max(errors) if errors else None

    def assert_ok(self) -> None:
        """Raise `VerificationError`, with the first wrong step and quantity in its first line, unless `ok`."""
        if not self.ok:
            raise VerificationError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON; a number that is not finite becomes a string."""

        def plain(x: float) -> float | str:
            return x if math.isfinite(x) else str(x)

        def row(c: Check) -> dict[str, Any]:
            numbers = {f: plain(getattr(c, f)) for f in ("value", "expected", "error", "uncertainty", "allowed")}
            told = {"applied": plain(c.applied), "verdict": c.verdict.value, "reason": c.reason}
            return {"subject": c.subject, "entry": c.name, "oracle": c.oracle, **numbers, **told}

        return {
            "ok": self.ok,
            "headline": self.headline,
            "first_wrong": self.finding and {**self.finding._asdict(), "error": plain(self.finding.error)},
            "notes": list(self.notes),
            "checks": [row(c) for c in self.checks],
        }

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The table's cells; an entry is named in the first of its rows only."""
        entry = value = ""
        for c in self.checks:
            name = printable(c.name)
            cells = (name if c.subject == "engine" else f"{c.subject} {name}", f"{c.value:.8g}")
            shown = tuple("" if new == old else new for new, old in zip(cells, (entry, value), strict=True))
            entry, value = cells
            sizes = (f"{x:.1e}" if math.isfinite(x) else "-" for x in (c.error, c.uncertainty, c.applied))
            verdict = c.verdict.value + (f": {c.reason}" if c.verdict is Verdict.INCONCLUSIVE else "")
            yield (shown[0], cells[1] if shown[0] else shown[1], c.oracle, f"{c.expected:.8g}", *sizes, verdict)

    def __str__(self) -> str:
        return "\n".join([self.headline, *_columns([HEADER, *self.rows()]), *map(printable, self.notes)])

    @property
    def width(self) -> int:
        """Columns that the rich table needs; a narrower console cuts numbers."""
        return sum(_widths([HEADER, *self.rows()])) + 2 * len(HEADER)

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(*HEADER, box=None, padding=(0, 2, 0, 0))
        for number, column in enumerate(table.columns):
            column.no_wrap, column.justify = True, "right" if number in (1, 3, 4, 5, 6) else "left"
        for cells, c in zip(self.rows(), self.checks, strict=True):
            table.add_row(*map(Text, cells[:-1]), Text(cells[-1], STYLES[c.verdict]))
        return Group(
            Text(self.headline, "green" if self.ok else "bold red"),
            table,
            *(Text(printable(note)) for note in self.notes),
        )


HEADER = ("meta-parameter", "value or norm", "oracle", "its value", "rel. error", "uncertainty", "allowed", "verdict")
STYLES = {
    Verdict.OK: "green",
    Verdict.NOISE: "green",
    Verdict.BELOW: "yellow",
    Verdict.DISAGREES: "bold red",
    Verdict.UNDEFINED: "yellow",
    Verdict.INCONCLUSIVE: "yellow",
}


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, _widths(rows), strict=True)).rstrip()


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
