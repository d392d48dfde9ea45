"""The memory of an implicit gradient with its inner loop does not grow with the steps; that of an unrolled run does."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.measure import in_fresh_process


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_does_not_grow_with_the_inner_loop() -> None:
    """Ten times the steps: what an unrolled run keeps of each is theta and its graph, what remains of one is a loss."""
    peaks = {
        (way, J): int(in_fresh_process("tests.benchmarks.implicit", "--peak", way, str(J)))
        for way in ("unrolled", "implicit")
        for J in (60, 600)
    }
    grown = {way: peaks[way, 600] - peaks[way, 60] for way in ("unrolled", "implicit")}
    assert grown["unrolled"] > 50 * 2**20
    assert grown["implicit"] < grown["unrolled"] / 10
