"""What a lesson is: a problem, a text with places to go to, charts beside it, and a verification at its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gimli_core.errors import VerificationError
from gimli_core.step_through.lessons.order import place_of
from gimli_core.step_through.page.experiments import Experiments, record_experiments
from gimli_core.step_through.page.trace import Trace, trace
from gimli_core.step_through.walk import Walk, step_through

__all__ = ["KINDS", "Check", "Lesson", "Verification", "chart", "differences", "section"]


class Check(NamedTuple):
    """One number of the engine beside its oracle."""

    name: str
    engine: float
    oracle: float
    source: str  # where the oracle's number comes from
    tolerance: float  # absolute

    @property
    def agrees(self) -> bool:
        return bool(abs(self.engine - self.oracle) <= self.tolerance)


class Verification(tuple[Check, ...]):
    """The checks at a lesson's end."""

    def assert_ok(self) -> None:
        """Raise VerificationError that names each check which disagrees."""
        wrong = [str(check.name) for check in self if not check.agrees]
        if wrong:
            raise VerificationError(f"{', '.join(wrong)}: expected to agree with the oracle.\n{self}")

    def __str__(self) -> str:
        return "\n".join(
            f"{'agrees' if c.agrees else 'DIFFERS':8}{c.name:26}{c.engine:+.12g}  {c.oracle:+.12g}  "
            f"by {abs(c.engine - c.oracle):.1e} (allowed {c.tolerance:.1e}; {c.source})"
            for c in self
        )

    __repr__ = __str__  # in a cell: the comparison


@dataclass(frozen=True, repr=False)
class Lesson:
    """A problem to step through, with what there is to see.

    `lesson.page()` is its trace; `lesson.save(path)` writes it; `lesson.verification` compares the engine with an
    independent oracle; `lesson.walk()` is a fresh walk for your own use.
    """

    name: str
    title: str
    summary: str
    arguments: Mapping[str, Any]  # of `meta_gradient`
    sections: Sequence[Mapping[str, Any]]
    check: Callable[[Any], Sequence[Check]] = field(repr=False)
    charts: Callable[[Any], Sequence[Mapping[str, Any]]] = field(repr=False, default=lambda trace: ())
    experiments: Experiments | None = field(repr=False, default=None)

    def __repr__(self) -> str:
        return f"Lesson({self.name!r}, {self.title!r}, steps={self.arguments['steps']})"

    def walk(self) -> Walk:
        """A fresh walk through the lesson's problem."""
        return step_through(**self.arguments)

    @cached_property
    def _run(self) -> tuple[Trace, Verification]:
        run = trace(self.walk(), title=self.title)
        if run.error is not None:
            raise run.error
        return run, Verification(self.check(run))

    @cached_property
    def _page(self) -> Trace:
        run, checks = self._run
        data = dict(run.data)
        if self.experiments is not None:
            data["experiments"] = record_experiments(self.walk(), self.experiments)
        notes = {
            "name": self.name,
            **place_of(self.name),
            "summary": self.summary,
            "sections": list(self.sections),
            "charts": list(self.charts(run)),
            "checks": [
                [
                    c.name,
                    float(c.engine),
                    float(c.oracle),
                    float(abs(c.engine - c.oracle)),
                    float(c.tolerance),
                    c.source,
                    c.agrees,
                ]
                for c in checks
            ],
        }
        return Trace(self.title, data, run.result, None, notes)

    def page(self) -> Trace:
        """The lesson's run, with its text and its experiments."""
        return self._page

    @property
    def verification(self) -> Verification:
        """The engine's numbers beside the oracle's."""
        return self._run[1]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page."""
        return self.page().save(path)

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()


KINDS = ("ask", "nudge", "roads", "turn", "back", "close", "say")  # of cards: what can be tried on each


def section(
    heading: str,
    text: str,
    *,
    kind: str = "text",
    go: Sequence[tuple[str, int, int]] = (),
    why: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """A card of the text: `kind` says what can be tried on it, `go` names places as (label, line, step), the first
    of which the card sets the stage to, and `why` is a striking fact as a question with its answer."""
    part: dict[str, Any] = {"kind": kind, "heading": heading, "text": " ".join(text.split())}
    part["go"] = [list(place) for place in go]
    return part | ({"why": [why[0], " ".join(why[1].split())]} if why else {})


def chart(
    title: str,
    series: Mapping[str, Sequence[float]],
    *,
    caption: str,
    x: str = "step j",
    y: str = "",
    log: bool = False,
    bars: Sequence[str] = (),
    xs: Sequence[float] = (),
) -> dict[str, Any]:
    """Curves beside the text, one number a step or at each of `xs`; or bars, one for each name in `bars`, where
    entries are unrelated."""
    return {
        "y": y,
        "bars": list(bars),
        "xs": [float(v) for v in xs],
        "title": title,
        "caption": " ".join(caption.split()),
        "x": x,
        "log": log,
        "series": [[k, [float(v) for v in vs]] for k, vs in series.items()],
    }


def differences(f: Callable[[float], float], x: float, h: float) -> tuple[float, float]:
    """(f'(x), error) by central differences at h, h/2, h/4 and two of Richardson's extrapolations.

    The error is the last change, but no less than what rounding leaves: f's last bits over the smallest step.
    """
    d = [(f(x + h / 2**i) - f(x - h / 2**i)) * 2**i / (2 * h) for i in range(3)]
    first = [(4 * d[i + 1] - d[i]) / 3 for i in range(2)]
    second = (16 * first[1] - first[0]) / 15
    rounding = 64 * torch.finfo(torch.float64).eps * max(abs(f(x)), 1e-300) / h
    return second, abs(second - first[1]) + rounding
