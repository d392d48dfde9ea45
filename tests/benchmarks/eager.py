"""Eager speed and peak memory against autograd through a plain unroll.

    python -m tests.benchmarks.eager [--steps 50] [--repeats 5] [--data PATH]

MLP 784-512-512-10, batch 128, Adam, per-tensor learning rates and L2. Times are taken in turn in one process;
each peak in a process of its own, above what the process held after a warm-up run of two steps.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import gimli_core as gimli
from tests.benchmarks.history import add_history, noted
from tests.benchmarks.measure import MIB, in_fresh_process, median_ratio, paired_times, peak_above_base, ratios
from tests.benchmarks.mnist_mlp import DATA, Workload

ENGINES = ("autograd", "RetainGraphs", "StoreStates")


def runner(work: Workload, engine: str):
    return work.autograd if engine == "autograd" else lambda: work.engine(getattr(gimli.memory, engine)())


def warmed_up(steps: int, data: Path, engine: str):
    """A run whose libraries have touched their own memory already, in a run of two steps."""
    runner(Workload(2, data), engine)()
    return runner(Workload(steps, data), engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peak", choices=ENGINES, help="print only this engine's peak, in bytes")
    add_history(parser)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_above_base(lambda: warmed_up(arguments.steps, arguments.data, arguments.peak)))
        return
    options = ("--steps", str(arguments.steps), "--data", str(arguments.data))
    peaks = {e: int(in_fresh_process("tests.benchmarks.eager", *options, "--peak", e)) for e in ENGINES}
    work = Workload(arguments.steps, arguments.data)
    reference, ours = work.autograd(), work.engine()
    worst = max((abs(ours[k] - reference[k]) / abs(reference[k])).item() for k in reference)
    seconds = paired_times({e: runner(work, e) for e in ENGINES}, arguments.repeats)
    print(f"J = {arguments.steps}, {torch.get_num_threads()} threads; engines agree to {worst:.1e} (float32)")
    print(f"{'':14}{'median s':>10}{'time ratio':>12}{'peak MiB':>10}{'peak ratio':>12}")
    with noted("eager", arguments) as run:
        for e in ENGINES:
            ratio = median_ratio(seconds[e], seconds["autograd"])
            peak = f"{peaks[e] / MIB:10.0f}{peaks[e] / peaks['autograd']:12.2f}"
            print(f"{e:14}{statistics.median(seconds[e]):10.3f}{ratio:12.2f}{peak}")
            run.note(f"{e}/time", seconds[e], "s")
            run.note(f"{e}/time ratio", ratios(seconds[e], seconds["autograd"]), "ratio")
            run.note(f"{e}/peak", peaks[e], "bytes")
            run.note(f"{e}/peak ratio", peaks[e] / peaks["autograd"], "ratio")
        run.note("agreement with autograd", worst, "relative error")


if __name__ == "__main__":
    main()
