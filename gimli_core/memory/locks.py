"""Locks that tell one run from another, and a living process from a dead one: they go with the process that took them.

A forked child does not inherit them: a worker that outlives its parent would hold what its parent has left.
"""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:  # not a POSIX system: others are not recognised
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock", "release"]

_locked: set[int] = set()


def lock(descriptor: int) -> bool | None:
    """Lock an open file until `release`. False where another has it; None where that cannot be told (some network
    file systems)."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    _locked.add(descriptor)
    return True


def release(descriptor: int, process: int) -> None:
    """Close a file that `process` opened and may have locked; in another process nothing happens."""
    if os.getpid() == process:
        _locked.discard(descriptor)
        os.close(descriptor)


def _forget() -> None:
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
