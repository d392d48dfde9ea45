"""What the C library is asked to do with memory; each in a process of its own, since it lasts."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gimli_core.memory import allocator
from gimli_core.memory.allocator import separates

REUSE = """
import resource, torch
from gimli_core.memory.allocator import give_back, reusing

def fresh_pages(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(mebibytes * 2**18) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with reusing():
    first, again = fresh_pages(48), fresh_pages(48)
after = fresh_pages(4), fresh_pages(96), fresh_pages(96)
give_back()
print(first, again, *after, fresh_pages(48))
"""


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not separates(), reason="glibc alone is asked")
@pytest.mark.skipif(HUGE.exists() and "[always]" in HUGE.read_text(), reason="pages of no fixed size cannot be counted")
def test_what_is_freed_within_serves_what_comes_next() -> None:
    """Counted in pages that the kernel had to clear."""
    found = subprocess.run([sys.executable, "-c", REUSE], check=True, capture_output=True, text=True)
    first, again, small_after, large_after, large_again, given_back = map(int, found.stdout.split())
    blocks = 8 * 48 * 2**20 // mmap.PAGESIZE
    assert first > 0.9 * blocks
    assert again <= blocks / 4  # two of eight: holes between aligned blocks cost one, and now and then one more
    assert small_after < 0.01 * blocks
    assert min(large_after, large_again) > 0.5 * blocks  # what is beyond that, in blocks above 32 MiB, is given back
    assert given_back > 0.9 * blocks


# The thread that looks comes too late for all of it, as on a machine whose processors are busy.
LATE = """
import torch
from gimli_core.memory.allocator import long_lived, occupied

def most_of(mebibytes, libraries=False):
    with long_lived(), occupied(seconds=60, libraries=libraries) as most:
        torch.ones(mebibytes * 2**18)
        within = most()
    torch.ones(512 * 2**18)
    return within, most()

def in_mebibytes(told):
    return [round(bytes_of / 2**20) for bytes_of in told]

torch.ones(1)
print(*in_mebibytes(most_of(256)), *in_mebibytes(most_of(768, libraries=True)), *in_mebibytes(most_of(256)))
"""


@pytest.mark.skipif(not separates(), reason="a budget is held on glibc alone")
def test_what_is_gone_before_anybody_looks_counts_too() -> None:
    """Where it is the most that the process ever occupied: a lower peak nobody remembers."""
    found = subprocess.run([sys.executable, "-c", LATE], check=True, capture_output=True, text=True)
    first, after_first, higher, after_higher, lower, after_lower = map(int, found.stdout.split())
    assert 250 <= first == after_first <= 262
    assert 762 <= higher == after_higher <= 774
    assert lower == after_lower == 0


@pytest.mark.skipif(not separates(), reason="a budget is held on glibc alone")
def test_a_look_that_takes_long_does_not_undo_what_the_kernel_has_told(monkeypatch: pytest.MonkeyPatch) -> None:
    record, looks, told = [0], threading.Event(), threading.Event()

    def slowly() -> int:
        if threading.current_thread() is not threading.main_thread():
            looks.set()
            told.wait(10)
        return 0

    monkeypatch.setattr(allocator, "resident", slowly)
    monkeypatch.setattr(allocator, "with_libraries", lambda: 0)
    monkeypatch.setattr(allocator, "highest", lambda: record[0])
    with allocator.occupied() as most:
        assert looks.wait(10)
        record[0] = 1000
        assert most() == 1000
        told.set()
    assert most() == 1000
