"""Is everything right on this device? One report; exits with 1 on a wrong number.

    python -m tests.device [--device cuda] [--quick] [--minutes 8] [--data DIR]

The contract's cases in float64 and float32, every schedule's agreement, budgets by the allocator's own count with and
without the machine's memory as second tier, no waiting within the loops, bfloat16, tasks and compiled tasks, then the
speed table with the peers that are installed. Without a GPU it runs on the processor, where budgets are counted by
tensors and waiting by the operations that would wait. `--quick` is for tests: a few rows of each, nothing compiled and
no table.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: the same bits at every call

import torch

from tests.benchmarks.history import Run, add_history, machine, noted
from tests.benchmarks.speed.workloads import DATA
from tests.device import contract, memory, precision, schedules, speed, synchronisation, tasks
from tests.device.check import Check, Where

SECTIONS = {
    "contract": contract.checks,
    "schedules": schedules.checks,
    "budgets": memory.checks,
    "waiting": synchronisation.checks,
    "bfloat16": precision.checks,
    "tasks": tasks.checks,
}


def section(name: str, checks: Iterable[Check], run: Run) -> list[str]:
    """Print a section's lines as they come; the names of those that are wrong."""
    print(f"\n{name}", flush=True)
    start, wrong = time.perf_counter(), []
    try:
        for check in checks:
            print(f"  {'ok   ' if check.right else 'WRONG'} {check.name}: {check.said}", flush=True)
            wrong += [] if check.right else [f"{name}: {check.name}"]
    except Exception as error:  # the other sections still tell something
        print(f"  WRONG {type(error).__name__}: {error}", flush=True)
        wrong.append(f"{name}: {type(error).__name__}")
    run.note(f"{name}/time", time.perf_counter() - start, "s")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.device", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a few rows of each, no table")
    parser.add_argument("--minutes", type=float, default=8, help="the speed table takes what the checks leave of them")
    parser.add_argument("--data", type=Path, default=DATA)
    add_history(parser)
    given = parser.parse_args(arguments)
    deadline = time.perf_counter() + 60 * given.minutes
    where = Where(torch.device(given.device), given.quick, given.data)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    wrong = []
    try:
        print(f"{where.device}: {machine()}")
        with noted("device", given) as run:
            for name, checks in SECTIONS.items():
                wrong += section(name, checks(where), run)
            if not given.quick:
                wrong += section("speed", speed.checks(where, deadline - time.perf_counter()), run)
    finally:
        torch.set_default_dtype(before)
    print(f"\n{'all right' if not wrong else 'WRONG: ' + '; '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
