"""One meta-gradient by several ways, as the inner loop grows longer: as a table and as a picture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.arguments.approximation import Approximation, FirstOrder, Truncated
from gimli_core.arguments.call import Call
from gimli_core.errors import GimliError, first_line, listing, printable, unexpected
from gimli_core.implicit.implicit_gradient import implicit_gradient
from gimli_core.implicit.systems import Solver
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient
from gimli_core.runs.make_run import make_run
from gimli_core.runs.run import drain
from gimli_core.transforms.tasks import Tasks
from gimli_core.verification.question import Entries, flatten

__all__ = ["Comparison", "Way", "compare"]

WAYS = ("unrolled", "truncated", "implicit", "first order")


class Way(NamedTuple):
    """A meta-gradient by one way, of an inner loop of J steps."""

    way: str  # of WAYS
    steps: int  # J
    error: float  # ||gradient - reference|| / ||reference||; nan where there is no gradient
    length: float  # ||gradient||
    val_loss: float
    seconds: float
    estimate: float | None  # of the error, by an implicit gradient's own report
    why: str  # why there is no gradient, in one line; or ""


@dataclass(frozen=True)
class Comparison:
    """What `gimli.compare` found. Print it, or draw it with `.plot(path)`.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> problem = gimli.proximal(problem, strength=0.2)
    >>> found = gimli.compare(problem, theta_0, one, one, steps=(2, 40))
    >>> [row.error < 1e-3 for row in found.of("implicit")]       # right once the inner loop has come to rest
    [False, True]
    """

    ways: tuple[Way, ...]
    reference: str  # what the errors are relative to

    def of(self, way: str) -> tuple[Way, ...]:
        """The rows of one way, by J."""
        return tuple(row for row in self.ways if row.way == way)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The table's cells."""
        for row in self.ways:
            uncertainty = "" if row.estimate is None else f"{row.estimate:.1e}"
            figures = (f"{row.error:.1e}", uncertainty, f"{row.length:.4g}") if not row.why else ("-", "-", "-")
            yield (row.way, str(row.steps), *figures, f"{row.val_loss:.6g}", f"{row.seconds:.3f}", printable(row.why))

    def __str__(self) -> str:
        lines = [HEADER, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([f"errors relative to {self.reference}", *table])

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(*HEADER, title=f"errors relative to {self.reference}", box=None, padding=(0, 2, 0, 0))
        for cells in self.rows():
            table.add_row(*map(Text, cells))
        return table

    def plot(self, path: str | Path) -> None:
        """Draw the errors over J to a file: .png, .svg or .pdf, whole or not at all.

        Raises ArgumentError for another ending or a place that cannot be written. Needs matplotlib.
        """
        from gimli_core.verification.comparison_picture import save

        shown = [row for row in self.ways if row.error > 0]  # neither nan nor the reference itself
        curves = {way: [(row.steps, row.error, row.estimate) for row in shown if row.way == way] for way in WAYS}
        save(Path(path), curves, self.reference)


HEADER = ("way", "steps", "rel. error", "its own estimate", "length", "val_loss", "seconds", "no gradient since")


def compare(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batch: Any,
    val_batch: Any,
    *,
    steps: Sequence[int] = (1, 3, 10, 30, 100),
    phi_loss: Mapping[str, Any] | None = None,
    truncate: int = 5,
    solver: Solver | None = None,
    damping: float = 0.0,
    tasks: int | Tasks | None = None,
    closed_form: Mapping[str, Any] | None = None,
) -> Comparison:
    """Unrolled, truncated, implicit and first-order meta-gradients side by side, for every J in `steps`.

        unrolled      exact for a loop of J steps
        truncated     its last `truncate` steps only
        implicit      as if theta_J were the fixed point of the loop
        first order   without second derivatives along the path

    What is compared is A_loss and B_0 together, as one vector.

    Args:
        problem, theta_0, val_batch, phi_loss, tasks: as for `gimli.meta_gradient`.
        train_batch: the batch of every inner step: a fixed point needs one.
        steps: the J to look at, rising.
        truncate, solver, damping: of the truncated and the implicit gradient.
        closed_form: what is right, `{"A_loss": {…}, "B_0": {…}}`; by default the unrolled gradient of the longest loop.

    Returns:
        Comparison: `print` it, `.plot("comparison.png")`, or read its `ways`.

    Raises:
        ArgumentError: as `gimli.meta_gradient` and `gimli.implicit_gradient`. What they refuse at one J, such as a
            Hessian that is not positive there, stands in the table instead.

    Cost: for each J one unrolled run, one truncated, one to first order, and one solve.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.proximal(gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.25)), strength=1.0)
    >>> target = torch.ones(2, dtype=torch.float64)
    >>> right = {"B_0": {"w": torch.full((2,), -0.25, dtype=torch.float64)}}
    >>> found = gimli.compare(problem, {"w": torch.zeros_like(target)}, target, target, steps=(2, 6), closed_form=right)
    >>> [f"{row.error:.3f}" for row in found.of("unrolled")], [f"{row.error:.3f}" for row in found.of("implicit")]
    (['0.562', '0.031'], ['0.250', '0.016'])
    """
    lengths = _checked(steps)
    call = Call(problem, theta_0, lambda j: train_batch, val_batch, lengths[-1], None, phi_loss, tasks=tasks)

    def unrolled(J: int, left_out: Approximation | None = None) -> MetaGradient:
        run = make_run(replace(call, steps=J, approximation=left_out))
        drain(run.forward())
        drain(run.backward())
        return run.result()

    def implicit(theta_J: Mapping[str, Tensor]) -> MetaGradient:
        return implicit_gradient(
            problem,
            theta_J,
            train_batch,
            val_batch,
            phi_loss=phi_loss,
            theta_0=theta_0,
            solver=solver,
            damping=damping,
            inner_tolerance=math.inf,
            tasks=tasks,
        )

    exact = {J: _timed(partial(unrolled, J)) for J in lengths}
    longest = _entries(exact[lengths[-1]][0])
    right = longest if closed_form is None else _closed_form(closed_form, longest)
    rows = []
    for J, (result, seconds) in exact.items():
        rows.append(_row("unrolled", J, result, seconds, right))
        for way, left_out in (("truncated", Truncated(truncate)), ("first order", FirstOrder())):
            rows.append(_row(way, J, *_timed(partial(unrolled, J, left_out)), right))
        try:
            rows.append(_row("implicit", J, *_timed(partial(implicit, result.theta_J)), right))
        except ArithmeticError as error:  # not converged, negative curvature, not finite
            if not isinstance(error, GimliError):
                raise
            nan, loss = math.nan, result.val_loss.item()
            rows.append(Way("implicit", J, nan, nan, loss, nan, None, first_line(error)))
    name = f"the unrolled gradient of {lengths[-1]} steps" if closed_form is None else "the closed form"
    return Comparison(tuple(sorted(rows, key=lambda row: WAYS.index(row.way))), name)


def _checked(steps: Any) -> list[int]:
    lengths = list(steps) if isinstance(steps, (Sequence, range)) and not isinstance(steps, str) else []
    counts = all(isinstance(J, int) and not isinstance(J, bool) and J >= 1 for J in lengths)
    if not lengths or not counts or lengths != sorted(set(lengths)):
        do = "For example (1, 3, 10, 30, 100)."
        raise unexpected("steps", "rising whole numbers of inner steps, from 1 on", repr(steps), do)
    return lengths


def _timed(compute: Callable[[], MetaGradient]) -> tuple[MetaGradient, float]:
    start = time.perf_counter()
    result = compute()
    return result, time.perf_counter() - start


def _entries(result: MetaGradient) -> Entries:
    return flatten({"A_loss": result.A_loss, "B_0": result.B_0}, ())


def _closed_form(closed_form: Mapping[str, Any], like: Entries) -> Entries:
    """A closed form keyed like a result; what it leaves out is not compared."""
    entries = flatten(dict(closed_form), ())
    wrong = [key for key, value in entries.items() if key not in like or value.shape != like[key].shape]
    if wrong or not entries:
        do = "Key it as a result: {'A_loss': {…}, 'B_0': {…}}."
        raise unexpected("closed_form", f"entries among {listing(like)}", listing(wrong), do)
    return entries


def _row(way: str, J: int, result: MetaGradient, seconds: float, right: Entries) -> Way:
    entries = _entries(result)
    there = _vector([entries[key] for key in right])
    truth = _vector(list(right.values()))
    size = truth.norm().item()
    off = (there - truth).norm().item()
    report = getattr(result, "report", None)
    estimate = None if report is None else report.solve.relative + report.inner.relative
    error = off / size if size else (0.0 if off == 0 else math.inf)
    return Way(way, J, error, there.norm().item(), result.val_loss.item(), seconds, estimate, "")


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([v.detach().to("cpu", torch.float64).reshape(-1) for v in tensors])
