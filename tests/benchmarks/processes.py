"""What processes send each other, how the peak of each falls with their number, and how much time two save.

    python -m tests.benchmarks.processes [--steps 20] [--repeats 5] [--ranks 1 2 4] [--modes tasks data]
                                         [--compile] [--data PATH]

MLP 784-512-512-10, batch 128, Adam, per-tensor learning rates and L2, in float32: the MLP of the speed table. Ranks are
gloo processes of this machine with one thread each.

- Messages and bytes are counted, of one run of J steps, over its steps: those of the ends are listed apart. Bytes are
  what a rank puts in; of an all_reduce a ring sends about twice as much, of an all_gather W - 1 times, of an
  all_to_all (W - 1) / W: all_gather and all_to_all together are as much on the wire as one all_reduce.
- Peaks are resident bytes above what the process held before, by stored states; a state is theta_j and s_j.
- Times are pairs, A B A B: one process alone, and two that share its work. `of the time` is one process's seconds over
  twice those of two: 1 is perfect. `of the work` is its processor time over that of the two together, which other
  programs on the machine touch less: they still empty its caches, more so for who waits for another.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

import gimli_core as gimli
from gimli_core.processes.collectives import counting
from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import MIB, peak_above_base
from tests.benchmarks.mnist_mlp import DATA, Workload
from tests.processes.launching import results_on_ranks

MODES = ("tasks", "data", "shard", "data+shard")
TASKS = 4


class Counted(NamedTuple):
    """What one rank sent in one run of J steps, and what it held at most."""

    by_message: dict[str, tuple[int, int]]  # what it is for: (how many, bytes)
    peak: int
    state: int  # bytes of theta_j and s_j as this rank stores them


def kind(what: str) -> str:
    """What a message is for, without its step."""
    return what.partition(" at ")[0].partition(" of step")[0]


def meta_gradient(mode: str | None, steps: int, data: Path, **more: Any) -> Callable[..., gimli.MetaGradient]:
    """One meta-gradient of the workload, as a rank runs it; None is one process alone, as "tasks" where `tasks`."""
    torch.set_default_dtype(torch.float32)
    work = Workload(steps, data)
    batch: Callable[[int], Any] = work.batch
    val = work.val
    if mode is not None and "data" in mode:
        rank, size = distributed.get_rank(), distributed.get_world_size()

        def part(whole: Any) -> Any:
            return tuple(x.tensor_split(size)[rank] for x in whole)

        batch, val = lambda j: part(work.batch(j)), part(work.val)
    if "tasks" in more:
        T = more["tasks"].count

        def of_tasks(whole: Any) -> Any:
            return tuple(torch.stack([x] * T) for x in whole)

        batch, val = lambda j: of_tasks(work.batch(j)), of_tasks(work.val)

    def run(steps: int = steps) -> gimli.MetaGradient:
        torch.manual_seed(0)
        return gimli.meta_gradient(
            work.problem,
            work.theta_0,
            batch,
            val,
            steps=steps,
            phi_opt={"lr": work.lr},
            phi_loss=work.log_l2,
            mesh=mode,
            **{"compile": False, **more},
        )

    return run


def of_tasks(mode: str | None) -> dict[str, Any]:
    return {"tasks": gimli.Tasks(TASKS, chunk=1)} if mode == "tasks" else {}


def counted(mode: str, steps: int, data: str) -> Counted:
    """One rank's messages and peak; call it in a process of its own."""
    memory = gimli.memory.StoreStates()
    run = meta_gradient(mode, steps, Path(data), memory=memory, **of_tasks(mode))
    run(2)  # what is loaded, tried and probed once is not what is measured
    with counting() as sent:
        peak = peak_above_base(lambda: run)
    found: dict[str, tuple[int, int]] = {}
    for one in sent:
        number, nbytes = found.get(kind(one.what), (0, 0))
        found[kind(one.what)] = (number + 1, nbytes + one.nbytes)
    whole = 3 * 4 * sum(v.numel() for v in Workload(2, Path(data)).theta_0.values())
    return Counted(found, peak, whole if mode == "tasks" else whole // distributed.get_world_size())


def paired(mode: str, steps: int, data: str, repeats: int, compile: bool) -> list[tuple[float, float, float, float]]:
    """Of each pair the seconds of rank 0 alone and of both, and this rank's processor seconds of the two."""
    alone = meta_gradient(None, steps, Path(data), compile=compile, **of_tasks(mode))
    shared = meta_gradient(mode, steps, Path(data), compile=compile, **of_tasks(mode))
    pairs = []
    for i in range(repeats + 1):
        distributed.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        if distributed.get_rank() == 0:
            alone()
        one, one_cpu = time.perf_counter() - start, time.process_time() - cpu
        distributed.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        shared()
        if i:  # the first of each warms up
            pairs.append((one, time.perf_counter() - start, one_cpu, time.process_time() - cpu))
    return pairs


def table_of_messages(run: Run, modes: list[str], ranks: list[int], steps: int, data: Path, directory: Path) -> None:
    print(f"One run of {steps} steps by stored states, for each rank; bytes are what it puts in")
    print(f"{'mode':10}{'W':>3}{'peak MiB':>10}{'a state MiB':>13}  messages: how many a step, MB a step")
    for mode in modes:
        for W in ranks:
            found = results_on_ranks(
                W, counted, mode, steps, str(data), directory=directory / f"{mode}{W}", timeout=300
            )
            most = max(found, key=lambda each: each.peak)
            print(f"{mode:10}{W:3}{most.peak / MIB:10.1f}{most.state / MIB:13.2f}", flush=True)
            run.note(f"{mode}/W = {W}/peak", [each.peak for each in found], "bytes")
            run.note(f"{mode}/W = {W}/a stored state", most.state, "bytes")
            for what, (number, nbytes) in most.by_message.items():
                print(f"{'':38}{what}: {number / steps:.2f}, {nbytes / steps / 1e6:.3f}")
                run.note(f"{mode}/W = {W}/{what}", nbytes / steps, "bytes")


def table_of_times(
    run: Run, modes: list[str], steps: int, repeats: int, compile: bool, data: Path, directory: Path
) -> None:
    print(f"\nTwo processes of one thread against one of one thread, medians of {repeats} pairs")
    print(f"{'mode':10}{'alone s':>9}{'two s':>9}{'of the time':>13}{'of the work':>13}")
    for mode in modes:
        first, second = results_on_ranks(
            2, paired, mode, steps, str(data), repeats, compile, directory=directory / f"{mode} timed", timeout=300
        )
        times = [a / (2 * b) for a, b, _, _ in first]
        works = [a / (b + c) for (_, _, a, b), (_, _, _, c) in zip(first, second, strict=True)]
        alone, two = (statistics.median(pair[i] for pair in first) for i in (0, 1))
        line = f"{mode:10}{alone:9.2f}{two:9.2f}{statistics.median(times):13.2f}{statistics.median(works):13.2f}"
        print(line, flush=True)
        run.note(f"{mode}/of the time", times, "ratio")
        run.note(f"{mode}/of the work", works, "ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--compile", action="store_true", help="time compiled steps, of one process and of two")
    parser.add_argument("--data", type=Path, default=DATA)
    add_history(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, noted("processes", given) as run:
        table_of_messages(run, given.modes, given.ranks, given.steps, given.data, Path(directory))
        table_of_times(run, given.modes, given.steps, given.repeats, given.compile, given.data, Path(directory))


if __name__ == "__main__":
    main()
