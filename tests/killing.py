"""Runs that a test stops after their writings, and work in a forked child, which it may kill."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

import gimli_core.runs.journal as journal
from gimli_core.runs.journal import Journal

__all__ = ["Killed", "forked", "killed_after", "killed_until_done", "stopping", "until_through"]

Result = TypeVar("Result")


class Killed(BaseException):
    """Stands for a signal."""


@contextlib.contextmanager
def stopping(after: int | None = None) -> Iterator[None]:
    """Within it a run writes whenever it can, and is stopped after each of its writings, or after one of them alone."""
    write, count = Journal.write, itertools.count(1)

    def write_and_stop(self: Journal, *arguments: Any) -> None:
        write(self, *arguments)
        if next(count) == after or after is None:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "SECONDS", 0.0)
        patch.setattr(Journal, "write", write_and_stop)
        yield


def until_through(attempt: Callable[[], Result], most: int = 200) -> Result:
    """What a resumable run gives once it has come to its end, stopped after each of its writings."""
    with stopping():
        for _ in range(most):
            with contextlib.suppress(Killed):
                return attempt()
    raise AssertionError("the run never ended")


def forked(work: Callable[[], object]) -> int:
    """Start `work` in a forked child; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads: torch runs on one here
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def killed_after(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in place of that one, whose process is killed (-9) right after it."""

    def then_killed(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return then_killed


def killed_until_done(work: Callable[[], object], done: Path, delays: Sequence[float]) -> int:
    """Run `work` again and again until the file `done` is there, killed (-9) after each delay; how many kills hit."""
    killed, tries = 0, iter(delays)
    while not done.exists():
        child = forked(work)
        delay = next(tries, None)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        killed += status == signal.SIGKILL
    return killed
