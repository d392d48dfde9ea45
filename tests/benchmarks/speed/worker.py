"""Each engine in a process of its own, asked in turn: none sees another's allocator, threads or compiled code."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measure import resident

TURN = 0.2  # seconds that a turn takes at least: short runs are repeated within it


@dataclass(frozen=True)
class Question:
    """A workload and who computes it."""

    workload: str
    engine: str
    data: Path
    threads: int
    device: str = "cpu"
    dtype: str = "float32"
    peak: bool = False  # whether it will be asked for its peak, which needs a run of two steps first
    sizes: dict[str, int] = field(default_factory=dict)


class Worker:
    """An engine ready to run; `seconds()` takes one turn."""

    def __init__(self, question: Question) -> None:
        self.question = question
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, question), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: str) -> Any:
        try:
            self.pipe.send(what)
        except OSError:  # it has ended
            raise self._ended() from None
        return self.answer()

    def answer(self) -> Any:
        """What the process says next. Raises LookupError for an engine that cannot do this workload."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if kind == "cannot":
            raise LookupError(value)
        return value

    def _ended(self) -> LookupError:
        self.process.join()
        killed = ", killed: by the system, if its memory did not suffice" if self.process.exitcode == -9 else ""
        return LookupError(f"its process ended with code {self.process.exitcode}{killed}")

    def stop(self) -> None:
        self.pipe.close()
        self.process.join()


@dataclass(frozen=True)
class Workers:
    """Engines that are ready for the same workload, and the seconds that compiling took each."""

    by_engine: dict[str, Worker]
    compiling: dict[str, float]

    def ask(self, what: str) -> dict[str, Any]:
        """What each says. A line says of one that has ended why; it takes no further part."""
        said: dict[str, Any] = {}
        for e, worker in list(self.by_engine.items()):
            try:
                said[e] = worker.ask(what)
            except LookupError as error:
                print(f"  {e}: {error}", flush=True)
                del self.by_engine[e]
                worker.stop()
        return said

    def turns(self, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Seconds of a run of each engine, in turn: A B A B …; and the median of its processor time."""
        wall: dict[str, list[float]] = {e: [] for e in self.by_engine}
        cpu: dict[str, list[float]] = {e: [] for e in self.by_engine}
        for _ in range(repeats):
            for e, (seconds, of_processors) in self.ask("seconds").items():
                wall[e].append(seconds)
                cpu[e].append(of_processors)
        return {e: wall[e] for e in self.by_engine}, {e: statistics.median(cpu[e]) for e in self.by_engine if cpu[e]}


@contextmanager
def together(questions: list[Question]) -> Iterator[Workers]:
    """Those of the engines that can do it, prepared one after another; a line says why another cannot."""
    ready = Workers({}, {})
    try:
        for question in questions:
            worker = Worker(question)
            try:
                ready.compiling[question.engine] = worker.answer()
                ready.by_engine[question.engine] = worker
            except LookupError as error:
                print(f"  {question.engine}: {error}", flush=True)
                worker.stop()
        yield ready
    finally:
        for worker in ready.by_engine.values():
            worker.stop()


def serve(pipe: Connection, question: Question) -> None:
    """Prepare, say the seconds of compiling, then answer until the pipe closes.

    "seconds" of a turn, the "gradient", the "peak" of memory, or the "profile" of where the time goes.
    """
    if hasattr(os, "sched_setaffinity"):  # JAX takes its number of threads from it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: question.threads])
    if question.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other engines need the GPU's memory too
    import torch

    from tests.benchmarks.speed import engines, profile, workloads
    from tests.benchmarks.speed.ours import OPTIMIZERS

    warnings.simplefilter("ignore")
    torch.set_num_threads(question.threads)
    torch.backends.cudnn.allow_tf32 = False  # all do the same work, in float32

    def built(**sizes: int) -> workloads.Workload:
        work = workloads.build(question.workload, question.data, **{**question.sizes, **sizes})
        return work.to(question.device, getattr(torch, question.dtype))

    base = 0
    try:
        if question.peak:
            engines.prepare(question.engine, built(steps=2))
            base = occupied(question.device)
        run, tensors, compiling = engines.prepare(question.engine, built())
    except LookupError as error:
        pipe.send(("cannot", str(error)))
        return
    except Exception as error:
        pipe.send(("cannot", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"))
        return
    pipe.send(("ready", compiling))
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked == "seconds":
            value: Any = turn(run)
        elif asked == "gradient":
            value = {k: v.cpu().double().numpy() for k, v in tensors(run()).items()}
        elif asked == "profile":
            value = profile.shares(run, OPTIMIZERS[built().rule] if question.engine == "eager" else None)
        else:
            value = peak(run, base, question.device)
        pipe.send((asked, value))


def turn(run: Any) -> tuple[float, float]:
    """Seconds of a run, and processor seconds of all its threads, the mean over a turn."""
    start, processors, runs = time.perf_counter(), time.process_time(), 0
    while True:
        run()
        runs += 1
        seconds = time.perf_counter() - start
        if seconds >= TURN:
            return seconds / runs, (time.process_time() - processors) / runs


def occupied(device: str) -> int:
    """Bytes that the process holds, garbage and free holes given back; on the GPU those of its tensors."""
    gc.collect()
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    if not sys.platform.startswith("linux"):
        return 0
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.malloc_trim(0)
    return resident("VmRSS")


def peak(run: Any, base: int, device: str) -> int | None:
    """Bytes that a run adds at its highest to what the process held after a run of two steps; None if none can tell."""
    occupied(device)
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - base or None  # JAX's memory is not torch's
    if not base:
        return None
    Path("/proc/self/clear_refs").write_text("5")  # forget the peaks before
    run()
    return resident("VmHWM") - base


def worst_difference(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest ‖found − reference‖ / ‖reference‖ of "theta_0", "lr" and "phi_loss", each as one vector."""
    worst = 0.0
    for group in {k.split(".")[0] for k in reference}:
        names = [k for k in reference if k.split(".")[0] == group]
        a, b = (np.concatenate([d[k].ravel() for k in names]) for d in (found, reference))
        worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    return worst
