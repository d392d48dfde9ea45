"""Long-lived tensors apart from short-lived ones, where the C library is glibc.

NOTE [heap holes]
glibc serves blocks below a threshold from one heap. A tensor needs an aligned block, so the hole that it
leaves fits no tensor of the same size; a run that keeps every second block can then occupy
half as much again as it holds. Blocks above the threshold are mapped alone and go back whole, but each is fresh
memory that the kernel must clear, which doubles the time of a small step. So what stays (graphs, stored points)
is mapped, and what lives within a step stays on the heap.
"""

from __future__ import annotations

import ctypes
import functools
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["keeper", "long_lived", "resident", "separates"]

M_MMAP_THRESHOLD = -3
LOW, HIGH = 128 * 1024, 32 * 1024 * 1024  # glibc's own default, and the highest that it rises to by itself


@contextmanager
def long_lived() -> Iterator[None]:
    """Within it, large blocks are mapped alone. Elsewhere than on glibc nothing changes."""
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LOW)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, HIGH)


def separates() -> bool:
    """Whether `long_lived` does anything here."""
    return _mallopt() is not None


def keeper() -> Callable[[int], None]:
    """A function that holds the process within some bytes of what it occupies now, by giving free holes back."""
    if not separates():
        return lambda room: None
    library = ctypes.CDLL(None)
    library.malloc_trim(0)  # holes that earlier work left would count as this run's
    base = resident()

    def keep(room: int) -> None:
        if resident() - base > room:
            library.malloc_trim(0)

    return keep


def resident() -> int:
    """Bytes of memory that this process occupies, without files such as the libraries' code."""
    with open("/proc/self/statm") as file:
        _, pages, of_files, *_ = file.read().split()
    return (int(pages) - int(of_files)) * resource.getpagesize()


@functools.cache
def _mallopt() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
