"""The speed table on the device, beside the peers that are installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.history import FOLDER
from tests.device.check import Check, Where

WORKLOADS = {"sinusoid": None, "mnist": "mnist.npz", "omniglot": "omniglot28.npz", "transformer": None}


def checks(where: Where, seconds: float) -> Iterator[Check]:
    """As far as `seconds` go: the smaller workloads come first, each in a process that is ended when they are over."""
    most = seconds / len(WORKLOADS)
    for name, needs in WORKLOADS.items():
        if needs is not None and not (where.data / needs).exists():
            yield Check(name, True, f"{needs} is not here")
            continue
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.speed",
            "--device",
            where.device.type,
            "--only",
            name,
            "--repeats",
            "3",
            "--data",
            str(where.data),
            "--json",
            str(FOLDER / f"device-{where.device.type}-{name}.json"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=most, check=False)
        except subprocess.TimeoutExpired:
            yield Check(name, True, f"not within {most:.0f} s: python -m tests.benchmarks.speed")
            continue
        yield Check(name, done.returncode == 0, "\n" + (done.stdout if done.returncode == 0 else done.stderr))
