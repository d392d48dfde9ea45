"""A whole run kept to be looked at: the page, the figures and the notebook's view are drawn from it."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gimli_core.errors import unexpected
from gimli_core.memory.atomic_file import writing
from gimli_core.results import MetaGradient
from gimli_core.step_through.page.experiments import Experiments, record_experiments
from gimli_core.step_through.page.page import page
from gimli_core.step_through.page.recorder import Recorder
from gimli_core.step_through.page.unchanged import record_unchanged
from gimli_core.step_through.walk import Moment, Walk

__all__ = ["Cell", "Trace", "trace"]


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """A recorded run. `data` is what the page shows, as plain numbers: the engine's own."""

    title: str
    data: dict[str, Any]
    result: MetaGradient | None  # none where its end was not seen
    error: Exception | None
    notes: Mapping[str, Any]  # a lesson's text, charts and verification

    def html(self) -> str:
        """The page: one self-contained document that asks the network for nothing."""
        return page({"title": self.title, "notes": dict(self.notes), **self.data})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all. Raises ArgumentError where `path` cannot be written."""
        text = self.html().encode()
        with writing("path", path) as file:
            file.write(text)
        return Path(path)

    def cell(self, line: int = 14, j: int = 0, *, height: int = 520) -> Cell:
        """One moment for one cell of a notebook: the stage alone, at this line of step j, `height` pixels high. Its
        arrows lead on through the run.

        Raises:
            ArgumentError: a moment that was not recorded, a height that is no whole number from 200 on.

        >>> import gimli_core as gimli
        >>> gimli.lessons.quadratic().page().cell(line=14, j=4)
        Cell('SGD on a quadratic, beside its closed form', line=14, j=4)
        """
        moments = list(zip(self.data["events"]["line"], self.data["events"]["j"], strict=True))
        if (line, j) not in moments:
            steps = sorted({step for other, step in moments if other == line})
            lines = sorted({other for other, _ in moments})
            expected = f"j from {steps[0]} to {steps[-1]} at line {line}" if steps else f"a line of {lines}"
            raise unexpected("line, j", expected, f"line={line!r}, j={j!r}", "Name a moment of the run.")
        if type(height) is not int or height < 200:
            raise unexpected("height", "a whole number of pixels from 200 on", repr(height), "Give 520, say.")
        return Cell(self, line, j, height)

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own."""
        return _frame(self.title, self.html(), 860)

    def __repr__(self) -> str:
        data = self.data
        moments = len(data["events"]["line"])
        return f"Trace({self.title!r}, steps={data['steps']}, moments={moments}, {data['extent']})"


@dataclass(frozen=True, eq=False, repr=False)
class Cell:
    """One moment of a recorded run, as a notebook's cell shows it."""

    trace: Trace
    line: int
    j: int
    height: int  # pixels

    def _repr_html_(self) -> str:
        one = self.trace
        opens = {"line": self.line, "j": self.j}
        return _frame(one.title, page({"title": one.title, "notes": {}, **one.data, "opens": opens}), self.height)

    def __repr__(self) -> str:
        return f"Cell({self.trace.title!r}, line={self.line}, j={self.j})"


def _frame(title: str, document: str, height: int) -> str:
    return (
        f'<iframe title="{html.escape(title, quote=True)}" sandbox="allow-scripts" '
        f'style="width:100%;height:{height}px;border:1px solid #8884;border-radius:8px" '
        f'srcdoc="{html.escape(document, quote=True)}"></iframe>'
    )


def trace(
    walk: Walk,
    *,
    title: str = "Algorithm 1, step by step",
    follow: Sequence[str] = (),
    intervene: Callable[[Moment], object] | None = None,
    notes: Mapping[str, Any] | None = None,
    experiments: Experiments | None = None,
) -> Trace:
    """Run a walk to its end and keep what a page shows of it.

    Args:
        walk: from `gimli.step_through`; a fresh one, since of another only the rest is seen, as the trace then says.
        title: the page's heading.
        follow: entries of theta to follow through the run of a large model, such as "fc.weight[3, 2]". Of a
            small one every entry can be followed.
        intervene: called with each moment before it is kept; it may `change` values. The same run without changes is
            made first, and its numbers stand beside the changed ones.
        notes: a lesson's text; see `gimli_core.step_through.lessons`.
        experiments: what the reader may change: further runs, recorded beside this one. They run first, and leave
            generators and buffers as they were.

    Returns:
        Trace: with `.save("page.html")`, `.data`, `.result`. An error of the run ends it and is kept in `.error`.

    Cost: two further pullbacks a step; for problems of up to 40 parameters 6F a parameter and step for the
    Hessians; a run for each of the experiments' values and sets of closed roads. Memory: the numbers shown, at most
    about 10 MB.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> gimli.trace(gimli.step_through(problem, {"w": torch.zeros(2)}, [torch.ones(2)] * 3, torch.ones(2)))
    Trace('Algorithm 1, step by step', steps=3, moments=21, complete)
    """
    if not isinstance(walk, Walk):
        do = "Give what gimli.step_through returns."
        raise unexpected("walk", "a walk from gimli.step_through", type(walk).__name__, do)
    try:
        title.encode()
    except (AttributeError, UnicodeEncodeError):
        do = "Leave lone surrogates out."
        raise unexpected("title", "text that UTF-8 can hold", repr(title), do) from None
    _check_what_is_asked(follow, intervene, notes, experiments)
    recorder = Recorder(walk, follow)
    if experiments is not None:
        recorder.data["experiments"] = record_experiments(walk, experiments)
    unchanged = record_unchanged(walk) if intervene is not None else None
    failure = None
    try:
        for moment in walk:
            if intervene is not None:
                intervene(moment)
            with torch.enable_grad():  # the recorder asks for Hessians, whatever mode the caller is in
                recorder.see(moment)
    except Exception as error:
        failure = error
        recorder.fail(error)
    recorder.data["unchanged"] = unchanged if recorder.data["interventions"] else None
    recorder.data["extent"] = _extent(recorder.data, failure)
    reached_the_end = recorder.data["events"]["line"][-1:] == [16]
    result = walk.result if reached_the_end and failure is None else None
    return Trace(title, recorder.data, result, failure, dict(notes or {}))


def _check_what_is_asked(follow: object, intervene: object, notes: object, experiments: object) -> None:
    """Raise ArgumentError, before the run, for what could only fail in it or in the page's script."""
    listed = isinstance(follow, Sequence) and not isinstance(follow, str) and all(isinstance(e, str) for e in follow)
    for argument, asked, accepted, expected in (
        ("follow", follow, listed, 'a list of entries of theta, such as ["fc.weight[3, 2]"]'),
        ("intervene", intervene, intervene is None or callable(intervene), "a function of a Moment, or None"),
        ("notes", notes, notes is None or isinstance(notes, Mapping), "a dict, or None"),
        (
            "experiments",
            experiments,
            experiments is None or isinstance(experiments, Experiments),
            "Experiments, or None",
        ),
    ):
        if not accepted:
            raise unexpected(argument, expected, type(asked).__name__, "Its documentation shows the form.")


def _extent(data: Mapping[str, Any], failure: Exception | None) -> str:
    """How much of the run was recorded: a walk may have been taken some way, or closed, before it came here."""
    if failure is not None:
        return f"ended by {type(failure).__name__}"
    lines, steps = data["events"]["line"], data["events"]["j"]
    if not lines:
        return "nothing: the walk was over"
    if (lines[0], steps[0]) != (5 if data["steps"] else 8, 0):
        return f"only from line {lines[0]} of step {steps[0]} on: the walk had begun"
    return "complete" if lines[-1] == 16 else f"only up to line {lines[-1]} of step {steps[-1]}"
