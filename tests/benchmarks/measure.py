"""How the benchmarks measure: paired times in one process, and each peak in a process of its own."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gimli_core.memory.allocator import separates, trimmed

MIB = 2**20


def paired_times(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each run by `clock`, taken in turn (A B A B …) after one warm-up of each."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def beyond_the_second(run: Callable[[], object]) -> float:
    """Seconds that the first call takes beyond the second."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken[0] - taken[1]


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a / b of every pair."""
    return [x / y for x, y in zip(a, b, strict=True)]


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over the pairs of a / b."""
    return statistics.median(ratios(a, b))


def peak_above_base(prepare: Callable[[], Callable[[], object]]) -> int:
    """Bytes of resident memory that a run adds at its highest to what was held before it; call once a process."""
    run = prepare()
    gc.collect()
    if separates():
        trimmed()  # holes that the preparation left are not the run's
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the preparation
    run()
    return resident("VmHWM") - base


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def in_fresh_process(module: str, *arguments: str) -> str:
    """Standard output of `python -m module arguments…`."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout
