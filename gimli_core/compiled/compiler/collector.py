"""Python's collector of garbage, while the compiler is imported and at work.

It looks through everything that is alive whenever that has grown by a quarter. The compiler brings 270,000 objects that
stay, beside the 180,000 that there are, so it would look through all of them four times, and find little: a sixth of
the time, where the disk has all else. Afterwards they count as old ones, which it comes to in due time.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["young_alone"]

NEVER = 2**31 - 1  # collections of younger objects before one of older ones

_lock = threading.Lock()
_within = 0  # threads
_before = (0, 0, 0)  # what the first of them found


@contextmanager
def young_alone() -> Iterator[None]:
    """Within it, in any thread, the collector by itself looks through the youngest objects alone; after the last thread
    it does as before. A thread that asks for `gc.collect()` gets it."""
    global _within, _before
    with _lock:
        if not _within:
            _before = gc.get_threshold()
            gc.set_threshold(_before[0], NEVER, NEVER)
        _within += 1
    try:
        with _torch_leaving_it_alone():
            yield
    finally:
        with _lock:
            _within -= 1
            if not _within and gc.get_threshold() == (_before[0], NEVER, NEVER):  # else somebody has set another
                gc.set_threshold(*_before)
                if not gc.get_freeze_count():  # what somebody has frozen stays so
                    gc.freeze()
                    gc.unfreeze()  # to the oldest generation


def _torch_leaving_it_alone() -> AbstractContextManager[None]:
    """Within it, in this thread, torch asks for no collection whenever it has compiled something."""
    from torch._dynamo import config  # here, since it imports the compiler

    patched: AbstractContextManager[None] = config.patch(run_gc_after_compile=False)
    return patched
