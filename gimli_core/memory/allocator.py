"""Long-lived tensors apart from short-lived ones, where the C library is glibc.

NOTE [heap holes]
glibc serves blocks below a threshold from one heap. A tensor needs an aligned block, so the hole that it
leaves fits no tensor of the same size; a run that keeps every second block can then occupy
half as much again as it holds. Blocks above the threshold are mapped alone and go back whole, but each is fresh
memory that the kernel must clear, which doubles the time of a small step. So what stays (graphs, stored points)
is mapped, and what lives within a step stays on the heap.
How much the heap loses depends on the sizes of a problem's tensors, so it is measured on two steps (`occupied`). It
grows with every step that is run on the heap, slowly, and comes to rest (`cost.holes`).

NOTE [memory kept for reuse]
A run takes the same memory at every call. By default glibc gives back what is free at the end of the heap, and every
block above 32 MiB, and the kernel clears each page of it anew in the next call: a fifth of the time of a compiled run
of the MNIST MLP, a seventh of an eager one of Omniglot's convolutions. So a run without `memory=` takes all from the
heap, and what is free at the heap's end stays with the process from then on, up to 2 GiB; more is given back whole, but
for holes below a block that is still in use. A run with `memory=` gives all of it back before it starts.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gimli_core.memory.pages import highest, resident, with_libraries

__all__ = [
    "LOW",
    "footprint",
    "fresh_seconds",
    "give_back",
    "in_use",
    "keeper",
    "long_lived",
    "occupied",
    "reusing",
    "separates",
    "trimmed",
]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LOW = 128 * 1024  # glibc's own default threshold
# What stays: the user's own choice, or the highest that it rises to by itself. glibc does not tell what held before,
# and once it was set by hand it no longer rises.
CHOSEN = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
HIGH = int(CHOSEN) if CHOSEN.isdigit() else 32 * 1024 * 1024
MANY = os.environ.get("MALLOC_MMAP_MAX_", "")
BLOCKS = int(MANY) if MANY.isdigit() else 65536  # that may be mapped; glibc's own default

# Python tells how many objects it has, and not how large they are. Those of a kept graph are of 88 bytes on average;
# the largest that it does not take from the C library are of 512.
SMALL_OBJECT = 128

_reuse = {"depth": 0}  # how many `reusing` are entered


@contextmanager
def long_lived() -> Iterator[None]:
    """Within it, large blocks are mapped alone. Elsewhere than on glibc nothing changes."""
    mallopt = _mallopt()
    mallopt(M_MMAP_THRESHOLD, LOW)
    mallopt(M_MMAP_MAX, BLOCKS)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, HIGH)
        mallopt(M_MMAP_MAX, 0 if _reuse["depth"] else BLOCKS)


@contextmanager
def reusing() -> Iterator[None]:
    """Within it, what is freed serves what comes next, and so it does from then on: NOTE [memory kept for reuse]."""
    mallopt = _mallopt()
    _keep_free()
    _reuse["depth"] += 1
    mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        _reuse["depth"] -= 1
        if not _reuse["depth"]:
            mallopt(M_MMAP_MAX, BLOCKS)


def give_back() -> None:
    """Give back what is free before a run that is to take the least memory: what `reusing` has left, and the holes of
    what was copied and tried before the run, in which its tensors would lie apart (6 % of its peak).
    """
    if separates():
        trimmed()


def separates() -> bool:
    """Whether `long_lived` does anything here."""
    return _mallopt() is not _nothing


def fresh_seconds(size: int = 2**20, times: int = 16) -> float:
    """Seconds a byte for memory that the process did not have: to map it, have it cleared, and give it back.

    A little at a time, since a small budget holds while this is measured too.
    """
    if not separates():
        return 0.0
    start = time.perf_counter()
    for _ in range(times):
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
            np.frombuffer(fresh, dtype=np.uint8)[:: mmap.PAGESIZE] = 1  # one byte a page: the kernel clears it whole
    return (time.perf_counter() - start) / (size * times)


def keeper() -> Callable[[int], None]:
    """A function that holds the process within some bytes of what it occupies now, by giving free holes back."""
    if not separates():
        return lambda room: None
    base = trimmed()

    def keep(room: int) -> None:
        if resident() - base > room:
            trimmed()

    return keep


@contextmanager
def occupied(seconds: float = 1e-4, *, libraries: bool = False) -> Iterator[Callable[[], int]]:
    """Gives a function that tells the most bytes, above those before it, that the process occupied within it; those of
    its libraries' code are left out, unless `libraries`.

    A thread looks now and then, so that what an operation allocates and frees inside itself is seen too. Where others
    keep the processors busy it looks late, and misses what is gone by then; so the kernel is asked as well, which knows
    the most that there ever was: if that has risen, it is the most within.
    """
    if not separates():
        yield lambda: 0
        return
    trimmed()
    told = with_libraries if libraries else resident
    base, before, done = told(), highest(), threading.Event()
    seen = recorded = 0  # by the thread, and by the kernel: each written by one side alone

    def look() -> None:
        nonlocal seen
        while not done.wait(seconds):
            seen = max(seen, told() - base)

    def at_most() -> int:
        nonlocal recorded
        if not done.is_set() and (risen := highest()) > before:
            recorded = max(recorded, risen - base - (with_libraries() - told()))
        return max(seen, recorded)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield at_most
    finally:
        at_most()
        done.set()
        thread.join()


def trimmed() -> int:
    """Bytes that the process occupies once free holes are given back: those of earlier work are not a run's."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def footprint() -> int:
    """Bytes that this process occupies with its libraries' code, once free holes are given back; 0 elsewhere than on
    Linux with glibc.
    """
    if not separates():
        return 0
    trimmed()
    return with_libraries()


class _Blocks(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "free", "quick", "maps", "mapped", "unused", "quick_free", "used", "free_bytes", "top")
    )


def in_use() -> int:
    """Bytes of all blocks that this process has taken and not freed, and of Python's small objects.

    A graph is more than its tensors: each of its nodes, tensors and Python objects is a block or several. What is told
    is what all threads have taken. Elsewhere than on glibc (2.33 or later) Python's objects alone.
    """
    objects = SMALL_OBJECT * sys.getallocatedblocks()
    blocks = _mallinfo()
    return objects if blocks is None else objects + blocks.used + blocks.mapped


def _mallinfo() -> _Blocks | None:
    if not separates() or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        return None
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Blocks
    blocks: _Blocks = mallinfo2()
    return blocks


@functools.cache
def _keep_free() -> None:
    """Once for the process."""
    mallopt = _mallopt()
    mallopt(M_MMAP_THRESHOLD, HIGH)
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes: the most that can be said


@functools.cache
def _mallopt() -> Callable[[int, int], Any]:
    """glibc's function; elsewhere one that does nothing."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    glibc = library is not None and hasattr(library, "gnu_get_libc_version")
    return library.mallopt if library is not None and glibc else _nothing


def _nothing(option: int, value: int) -> None:
    """`mallopt` where there is none."""
