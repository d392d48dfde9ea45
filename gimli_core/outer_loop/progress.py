"""A bar with the time left, by rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gimli_core.outer_loop.log import Record

__all__ = ["shown"]


@contextmanager
def shown(step: int, steps: int) -> Iterator[Callable[[Record], None]]:
    """What shows a record: steps done of all, the time left, the loss. On standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("outer step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=step, loss="")

        def show(record: Record) -> None:
            loss = "not finite" if record["val_loss"] is None else f"{record['val_loss']:.4g}"
            bar.update(task, completed=record["step"], loss=f"loss {loss}")

        yield show
