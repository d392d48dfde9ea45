"""Records of torch's loggers that tell a user nothing: what they are about is dealt with, or nobody can do anything."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["unlogged"]


@contextmanager
def unlogged(name: str, which: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Within it, a logger drops the records of this thread for which `which` is true."""
    thread = threading.get_ident()

    def kept(record: logging.LogRecord) -> bool:
        return record.thread != thread or not which(record)

    logger = logging.getLogger(name)
    logger.addFilter(kept)
    try:
        yield
    finally:
        logger.removeFilter(kept)
