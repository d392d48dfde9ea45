"""An implicit gradient against 300 unrolled steps, on iMAML's synthetic problem: error, time and memory.

    python -m tests.benchmarks.implicit              # about two minutes on two cores

Errors, of which each row tells its own, are relative to the closed
form, and times are medians of runs in turn. "alone" is the solve at a theta_star that is there already; "with its loop"
runs an inner loop forwards first, by a momentum rule, of which an unrolled run stands beside it. Peaks are of a fresh
process each.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gimli_core as gimli
from tests.benchmarks.history import add_history, noted
from tests.benchmarks.imaml import Synthetic, synthetic
from tests.benchmarks.measure import MIB, in_fresh_process, median_ratio, paired_times, peak_above_base

TASKS, N = 8, 200
UNROLLED, ITS_LOOP = 300, 60  # steps
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "J"), help="print only one way's peak, in bytes")
    add_history(parser)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    if arguments.peak:
        print(peak(arguments.peak[0], int(arguments.peak[1])))
        return
    plain, fast = made(), made(lr=0.8, momentum=0.6)
    star = {"w": plain.minima}
    runs: dict[str, Callable[[], gimli.MetaGradient]] = {
        f"unrolled, {UNROLLED} steps": lambda: unrolled(plain, UNROLLED),
        f"unrolled, momentum, {ITS_LOOP}": lambda: unrolled(fast, ITS_LOOP),
        "implicit, alone": lambda: implicit(plain, star),
        "implicit, with its loop": lambda: implicit(fast, inner_loop(fast, ITS_LOOP)),
    }
    print(f"iMAML's synthetic problem: {TASKS} tasks of {N} numbers, float64, {torch.get_num_threads()} threads")
    seconds: dict[str, list[float]] = paired_times(runs, REPEATS)  # type: ignore[arg-type]
    first = next(iter(runs))
    with noted("implicit", arguments) as history:
        for name, run in runs.items():
            result = run()
            error = ((result.B_0["w"] - plain.B_0).norm() / plain.B_0.norm()).item()
            ratio = median_ratio(seconds[first], seconds[name])
            print(f"{name:28} error {error:.1e}   {1e3 * statistics.median(seconds[name]):8.1f} ms   {ratio:5.1f}x")
            history.note(f"{name}/time", seconds[name], "s")
            history.note(f"{name}/error", error, "relative error")
        print(implicit(fast, inner_loop(fast, ITS_LOOP)).report)
        for way in ("unrolled", "implicit"):
            peaks = {J: int(in_fresh_process("tests.benchmarks.implicit", "--peak", way, str(J))) for J in (60, 600)}
            print(f"peak of {way}: " + ", ".join(f"{peak / MIB:.1f} MiB at J = {J}" for J, peak in peaks.items()))
            for J, bytes_ in peaks.items():
                history.note(f"{way}/peak at J = {J}", bytes_, "bytes")


def made(**rule: Any) -> Synthetic:
    return synthetic(TASKS, N, strength=0.09, **rule)


def _call(made: Synthetic) -> dict[str, Any]:
    batch = made.arguments["train_batch"]
    rest = {k: v for k, v in made.arguments.items() if k != "train_batch"}
    return {**rest, "train_batches": lambda j: batch, "compile": False}


def unrolled(made: Synthetic, steps: int) -> gimli.MetaGradient:
    return gimli.meta_gradient(**_call(made), steps=steps)


def inner_loop(made: Synthetic, steps: int) -> dict[str, Tensor]:
    """theta_J, forwards only."""
    _, trajectory = gimli.unroll(**_call(made), steps=steps, with_trajectory=True)
    found: dict[str, Tensor] = trajectory.theta_J
    return found


def implicit(made: Synthetic, theta_star: dict[str, Tensor]) -> gimli.MetaGradient:
    return gimli.implicit_gradient(**made.arguments, theta_star=theta_star, solver=gimli.implicit.CG(rtol=1e-7))


def peak(way: str, steps: int) -> int:
    torch.set_default_dtype(torch.float64)

    def prepare() -> Callable[[], object]:
        problem = made()
        if way == "unrolled":
            unrolled(problem, 2)  # what torch sets up at first is nobody's
            return lambda: unrolled(problem, steps)
        implicit(problem, inner_loop(problem, 2) | {"w": problem.minima})
        return lambda: implicit(problem, inner_loop(problem, steps))

    return peak_above_base(prepare)


if __name__ == "__main__":
    main()
