"""Python's collector of garbage, while the compiler is imported and at work.

It looks through everything that is alive whenever that has grown by a quarter. The compiler brings 270,000 objects that
stay, beside the 180,000 that there are, so it looks through all of them four times, and finds little: a tenth of the
time, where the disk has all else.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["young_alone"]

NEVER = 2**31 - 1  # collections of the younger objects before one of all

_lock = threading.Lock()
_within = 0  # threads
_before = (0, 0, 0)  # what the first of them found


@contextmanager
def young_alone() -> Iterator[None]:
    """Within it, in any thread, the collector by itself looks through young objects alone; after the last thread it
    does as before. A thread that asks for `gc.collect()` gets it."""
    global _within, _before
    with _lock:
        if not _within:
            _before = gc.get_threshold()
            gc.set_threshold(*_before[:2], NEVER)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within and gc.get_threshold() == (*_before[:2], NEVER):  # else somebody has set another
                gc.set_threshold(*_before)
