"""Peak memory and time of the memory schedules, each in its own process, against autograd and against predictions.

    python -m tests.benchmarks.budget [--steps 50] [--data PATH] [--budgets 12] [--long 10 100 1000 10000] [--threads 1]

MLP 784-512-512-10, batch 128, Adam, per-tensor learning rates and L2. Peaks are above what the process holds after a
run of two steps, so that the libraries' code and buffers do not count; times are those of a second run, since the first
pays for memory that the process never had. Every line is predicted in the process that runs it: before the run, as
`gimli.plan` does, or by the budget itself. `--long` gives time per step under 256 MiB beside that of StoreStates, which
is run for at most 100 steps. There denormal numbers are flushed to zero, as XLA does by itself: from some thousand
steps on, the decayed weights of blank pixels are denormal, and the very same step takes the processor twice as long.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gimli_core as gimli
import gimli_core.memory.settle as engine_settle
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs, prepare
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.memory.measure import costs_of, measure
from gimli_core.memory.meters import LiveBytes
from gimli_core.memory.schedules.budget import choose, estimate, least
from gimli_core.memory.schedules.costs import predict
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.runs.make_run import makers
from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import MIB, in_fresh_process, peak_above_base
from tests.benchmarks.mnist_mlp import DATA, Workload

FIXED = ("RetainGraphs()", "StoreStates()", "Checkpoint(10)", "Checkpoint(5)", "Checkpoint(2)")
ONCE = 100  # longer runs are made once: what they pay at their start does not show
HEAD = f"{'J':>6} {'schedule':22}{'peak MiB':>9}{'ratio':>7}{'pred/meas':>11}{'seconds':>9}{'cpu s':>8}"


class Measured(NamedTuple):
    """One run: bytes above the base, predicted bytes, seconds, processor seconds, the schedule, and its budget."""

    peak: int
    predicted: int | None
    seconds: float
    cpu: float
    ran: str
    size: int = 0

    def note(self, run: Run, name: str) -> None:
        """The line as figures of a run; a meter of tensors takes no times."""
        run.note(f"{name}/peak", self.peak, "bytes")
        if self.seconds == self.seconds:
            run.note(f"{name}/time", self.seconds, "s")
            run.note(f"{name}/processor time", self.cpu, "s")
        if self.predicted is not None:
            run.note(f"{name}/predicted to measured peak", self.predicted / self.peak, "ratio")


def schedule_named(name: str) -> gimli.memory.Schedule:
    kind, argument = name.rstrip(")").split("(")
    return getattr(gimli.memory, kind)(*([int(argument)] if argument else []))


def timed(run: Callable[[], object], *, again: bool = True) -> tuple[int, float, float]:
    """(peak above the base of a first run; seconds and processor seconds of a second one, or of the first)."""
    start, cpu = time.perf_counter(), time.process_time()
    peak = peak_above_base(lambda: run)
    if again:
        start, cpu = time.perf_counter(), time.process_time()
        run()
    return peak, time.perf_counter() - start, time.process_time() - cpu


def measured(
    schedule: gimli.memory.Schedule, inputs: Inputs, run: Callable[[], object], compiled: CompiledSteps | None = None
) -> Measured:
    """A run of the engine beside its prediction; a budget's is the one that it made itself.

    A budget below the least feasible, which each process measures a little differently, is raised to it.
    """
    steps, made, size = inputs.form.steps, [], 0
    if isinstance(schedule, gimli.memory.Budget):

        def noted(budget: gimli.memory.Budget, steps: int, costs: Any) -> Any:
            nonlocal size
            size = max(budget.bytes, 1 + least(steps, costs))
            made.append((choose(gimli.memory.Budget(size), steps, costs), costs))
            return made[0][0]

        engine_settle.choose = noted
    else:
        made.append((schedule, costs_of(inputs, *makers(compiled or EagerSteps()))))
    peak, seconds, cpu = timed(run, again=inputs.form.steps <= ONCE)
    ran, costs = made[0]
    return Measured(peak, predict(ran.actions(steps), costs).peak, seconds, cpu, str(ran), size)


def inputs_of(work: Workload) -> Inputs:
    options = {"steps": work.steps, "phi_opt": {"lr": work.lr}, "phi_loss": work.log_l2}
    return prepare(Call(work.problem, work.theta_0, work.batch, work.val, **options))


def one(name: str, steps: int, data: Path) -> Measured:
    """One line of the table; call it in a process of its own."""
    short = Workload(2, data)
    short.engine(gimli.memory.Budget("8GiB"))
    short.autograd()
    work = Workload(steps, data)
    if name == "autograd":
        peak, seconds, cpu = timed(work.autograd)
        return Measured(peak, None, seconds, cpu, "")
    if name == "autograd, counted":
        with LiveBytes() as meter:
            work.autograd()
        return Measured(meter.peak, None, float("nan"), float("nan"), "")
    schedule = schedule_named(name)
    return measured(schedule, inputs_of(work), lambda: work.engine(schedule))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budgets", type=int, default=12, help="budgets between the least and twice all graphs")
    parser.add_argument("--long", type=int, nargs="*", default=[], metavar="J", help="also these J under 256 MiB")
    parser.add_argument("--skip-table", action="store_true", help="only --long")
    parser.add_argument("--threads", type=int, help="processor threads; 1 gives quiet times on a shared machine")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--one", help="only this schedule, as JSON")
    parser.add_argument("--flush-denormals", action="store_true", help="with --one: as --long does")
    add_history(parser)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.set_flush_denormal(given.flush_denormals)
    if given.one:
        print(json.dumps(one(given.one, given.steps, given.data)))
        return

    def line(name: str, steps: int, reference: int | None = None, *more: str, label: str = "") -> Measured:
        threads = ("--threads", str(given.threads)) if given.threads else ()
        options = ("--steps", str(steps), "--data", str(given.data), "--one", name, *threads, *more)
        found = Measured(*json.loads(in_fresh_process("tests.benchmarks.budget", *options)))
        ratio = "" if reference is None else f"{found.peak / reference:.3f}"
        close = "" if found.predicted is None else f"{found.predicted / found.peak:.2f}"
        print(
            f"{steps:>6} {name:22}{found.peak / MIB:9.0f}{ratio:>7}{close:>11}{found.seconds:9.2f}{found.cpu:8.2f}",
            flush=True,
        )
        found.note(run, f"{label or name}/J = {steps}")
        return found

    with noted("budget", given) as run:
        print(HEAD, flush=True)
        if not given.skip_table:
            table(line, given.steps, given.budgets, given.data)
        if given.long:
            long_runs(line, given.long)


def table(line: Callable[..., Measured], J: int, budgets: int, data: Path) -> None:
    """The fixed schedules, then budgets from the least to twice all graphs."""
    reference = line("autograd", J).peak
    line("autograd, counted", J, reference)
    for name in FIXED:
        line(name, J, reference)
    costs = measure(inputs_of(Workload(J, data)), makers(EagerSteps())[0])
    smallest, largest = 0.9 * least(J, costs), 2 * estimate(gimli.memory.Checkpoint(1, graphs=J), J, costs)[0]
    runs = []
    for i in range(budgets):
        size = int(smallest * (largest / smallest) ** (i / max(budgets - 1, 1)))
        found = line(f"Budget({size})", J, reference, label=f"budget {i + 1} of {budgets}")
        runs.append(found)
        print(verdict(found), flush=True)
    if runs:
        rises = [b.cpu / min(a.cpu for a in runs[:i]) for i, b in enumerate(runs) if i]
        print(f"a larger budget takes at most {max(rises):.2f} times a smaller one's processor time")


def verdict(found: Measured) -> str:
    kept = "kept" if found.peak <= found.size else "EXCEEDED"
    return f"{'':7}{kept}: {found.peak / found.size:.2f} of {found.size / MIB:.0f} MiB by {found.ran}"


def long_runs(line: Callable[..., Measured], lengths: list[int]) -> None:
    """Time per step under 256 MiB, beside that of StoreStates."""
    size, states = 256 << 20, {}
    for J in lengths:
        short = min(J, 100)
        if short not in states:
            states[short] = line("StoreStates()", short, None, "--flush-denormals", label="StoreStates(), long")
        found = line(f"Budget({size})", J, None, "--flush-denormals", label="256 MiB")
        beside = states[short]
        states_ms = 1e3 * beside.seconds / short
        print(
            f"{verdict(found)}\n{'':7}{1e3 * found.seconds / J:.1f} ms a step, "
            f"{1e3 * found.seconds / J / states_ms:.2f} times StoreStates' {states_ms:.1f} "
            f"(processor time {found.cpu / J / (beside.cpu / short):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
