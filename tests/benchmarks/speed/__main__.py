"""The meta-gradient's time, engine against engine, on the workloads of `workloads`.

    python -m tests.benchmarks.speed [--only WORKLOAD …] [--engines ENGINE …] [--repeats 7] [--threads N]
                                     [--device cuda] [--data DIR] [--plots DIR] [--profile]

Every engine computes the same float32 meta-gradient, compared first with float64 autograd. They run in turn
(A B A B …), each in its process; medians over the turns, ratios over the pairs. Apart is the time of compiling, with
nothing on the disk, and again in a second process, which finds there what the first one left. Beside the time stands
that of all processors: more than the time means threads, less that others kept the machine busy. Peaks are above what
a process held after a run of two steps, in which libraries touch their own memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import MIB, median_ratio, ratios
from tests.benchmarks.speed.engines import COMPILE, ENGINES
from tests.benchmarks.speed.plots import AXES, draw
from tests.benchmarks.speed.worker import Question, together, worst_difference
from tests.benchmarks.speed.workloads import BUILDERS, DATA

FLOORS = ("mnist", "omniglot", "transformer")  # where matrix products are most of the time
ASKED_FOR = ("whole",)  # left out unless named: many steps as one graph take minutes to compile
PEAKS = ("mnist", "transformer")


def once(question: Question, what: str) -> Any:
    """The answer of a process that is asked for nothing else; None where the engine cannot do it."""
    with together([question]) as workers:
        return workers.ask(what).get(question.engine)


def compiling_again(question: Question) -> float | None:
    """Seconds that compiling takes a second process, on what the first one left on the disk; None if that one ends."""
    with together([question]) as workers:
        return workers.compiling.get(question.engine)


def table(questions: list[Question], repeats: int, run: Run) -> None:
    """Compare the engines on one workload and print their rows."""
    reference = once(replace(questions[0], engine="autograd", dtype="float64"), "gradient")
    with together(questions) as workers:
        apart = {e: worst_difference(g, reference) for e, g in workers.ask("gradient").items() if g}
        seconds, processors = workers.turns(repeats)
    able = [question for question in questions if question.engine in set(apart)]
    peaks = {
        question.engine: once(replace(question, peak=True), "peak") for question in able if question.workload in PEAKS
    }
    again = {question.engine: compiling_again(question) for question in able if COMPILE.get(question.engine)}
    heads = (
        f"{'':16}{'median s':>10}{'cpu s':>10}{'/ ours':>9}{'/ eager':>9}{'compile s':>10}{'again':>9}{'off f64':>9}"
    )
    print(heads + (f"{'peak MiB':>10}" if peaks else ""))
    for e, taken in seconds.items():
        beside = [f"{median_ratio(taken, seconds[o]):9.2f}" if o in seconds else " " * 9 for o in ("ours", "eager")]
        off = f"{apart[e]:9.1e}" if e in apart else ""
        second = again.get(e)
        held = f"{peaks[e] / MIB:10.0f}" if peaks.get(e) else ""
        note(run, f"{questions[0].workload}/{e}", taken, seconds.get("ours"), apart.get(e), peaks.get(e))
        run.note(f"{questions[0].workload}/{e}/compile", workers.compiling[e], "s")
        if second is not None:
            run.note(f"{questions[0].workload}/{e}/compile in a second process", second, "s")
        times = f"{statistics.median(taken):10.5f}{processors[e]:10.5f}"
        compiling = f"{workers.compiling[e]:10.1f}" + (f"{second:9.1f}" if second is not None else " " * 9)
        print(f"{e:16}{times}{''.join(beside)}{compiling}{off}{held}", flush=True)


def note(run: Run, name: str, taken: list[float], ours: list[float] | None, off: Any, peak: Any) -> None:
    """A row of the table as figures."""
    run.note(f"{name}/time", taken, "s")
    if ours is not None:
        run.note(f"{name}/time to ours", ratios(taken, ours), "ratio")
    if off is not None:
        run.note(f"{name}/error", off, "relative error")
    if peak:
        run.note(f"{name}/peak", peak, "bytes")


def profiles(questions: list[Question]) -> None:
    """Where the time of a run goes, in seconds and shares."""
    for question in questions:
        spent = once(question, "profile") or {}
        whole = sum(spent.values())
        for group, seconds in spent.items():
            print(f"{question.engine:8}{group:46}{seconds:10.5f}{100 * seconds / whole:6.1f} %", flush=True)


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Within it, nothing that earlier runs compiled is found on the disk: compiling takes what it takes at first."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        yield


@cold_compiler()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BUILDERS, default=list(BUILDERS), metavar="WORKLOAD")
    usual = [e for e in ENGINES if e not in ASKED_FOR]
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=usual, metavar="ENGINE")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of mnist.npz and omniglot28.npz")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="only: how time grows, three plots written to DIR")
    parser.add_argument("--profile", action="store_true", help="only: where the time of our engine goes")
    add_history(parser)
    given = parser.parse_args()
    template = Question("", "", given.data, given.threads, given.device)
    if given.plots:
        with noted("speed_growth", given) as run:
            for axis in AXES:
                draw(axis, template, given.engines, given.repeats, given.plots, run)
        return
    if given.profile:
        for name in given.only:
            print(f"\n{name}, {given.threads} threads, {given.device}", flush=True)
            profiles([replace(template, workload=name, engine=e) for e in given.engines if e in ("ours", "eager")])
        return
    with noted("speed", given) as run:
        for name in given.only:
            print(f"\n{name}, {given.threads} threads, {given.device}", flush=True)
            engines = [e for e in given.engines if e != "floor" or name in FLOORS]
            table([replace(template, workload=name, engine=e) for e in engines], given.repeats, run)


if __name__ == "__main__":
    main()
