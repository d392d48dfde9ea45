"""What the kernel says of the memory that this process occupies. Linux alone tells."""

from __future__ import annotations

import os
import resource

__all__ = ["highest", "resident", "with_libraries"]


def resident() -> int:
    """Bytes of memory that this process occupies, without files such as the libraries' code."""
    pages, of_files = _pages()
    return (pages - of_files) * resource.getpagesize()


def with_libraries() -> int:
    """Bytes of memory that this process occupies, with its libraries' code."""
    return _pages()[0] * resource.getpagesize()


def highest() -> int:
    """The most bytes that this process has occupied since it began, with its libraries' code; 0 where nobody says."""
    _, told, after = _read("/proc/self/status", 4096).partition(b"VmHWM:")
    return 1024 * int(after.split(maxsplit=1)[0]) if told else 0


def _pages() -> tuple[int, int]:
    """Pages of memory that this process occupies, and how many of them are of files."""
    _, pages, of_files, *_ = _read("/proc/self/statm", 128).split()
    return int(pages), int(of_files)


def _read(path: str, size: int) -> bytes:
    """A file of the kernel's, without a buffer: that would be one more block of memory in use."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, size)
    finally:
        os.close(file)
