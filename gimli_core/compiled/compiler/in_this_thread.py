"""A function of torch's compiler replaced by another, for one thread and one block.

torch has such a function once for the process. What stands in its place from the first time on asks the thread that
calls it: other threads, and this one after the block, call torch's own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["replaced"]

_installing = threading.Lock()


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within it, in this thread, `owner.name` is what `make` makes of torch's own. A module's function or a class's
    method that is called through the class."""
    with _installing:
        there = getattr(owner, name)
        if not isinstance(there, _OfThread):
            there = _OfThread(there)
            setattr(owner, name, there)
    before = getattr(there.here, "function", there.torchs)
    there.here.function = make(there.torchs)
    try:
        yield
    finally:
        there.here.function = before


class _OfThread:
    """Calls what stands in torch's place in this thread."""

    def __init__(self, torchs: Callable[..., Any]) -> None:
        functools.update_wrapper(self, torchs)
        self.torchs, self.here = torchs, threading.local()

    def __reduce__(self) -> str:
        """By its name, as a function: another process finds torch's own there."""
        return self.torchs.__qualname__

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(self.here, "function", self.torchs)(*arguments, **named)
