"""Work in a forked child, which a test may kill."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["killed_until_done"]


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
