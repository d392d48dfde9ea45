"""What the C library is asked to do with memory; each in a process of its own, since it lasts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gimli_core.memory.allocator import separates

REUSE = """
import resource, torch
from gimli_core.memory.allocator import reusing

def fresh_pages(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(mebibytes * 2**18) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with reusing():
    first, again = fresh_pages(48), fresh_pages(48)
print(first, again, fresh_pages(4), fresh_pages(128), fresh_pages(128))
"""


@pytest.mark.skipif(not separates(), reason="glibc alone is asked")
def test_what_is_freed_within_serves_what_comes_next() -> None:
    """Counted in pages that the kernel had to clear; a page has 4 KiB at least."""
    found = subprocess.run([sys.executable, "-c", REUSE], check=True, capture_output=True, text=True)
    first, again, small_after, large_after, large_again = map(int, found.stdout.split())
    blocks = 8 * 48 * 256
    assert first > 0.9 * blocks
    assert again <= blocks / 8  # holes between aligned blocks can cost one more
    assert small_after < 0.01 * blocks
    assert min(large_after, large_again) > 0.9 * blocks  # what is beyond that, in blocks above 32 MiB, is given back
