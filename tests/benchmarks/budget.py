"""Peak memory and time of the memory schedules, each in its own process, against autograd and against predictions.

    python -m tests.benchmarks.budget [--steps 50] [--data PATH] [--budgets 12] [--long]

MLP 784-512-512-10, batch 128, Adam, per-tensor learning rates and L2. Peaks are above what the process holds after a
small run of the same kind, so that loading libraries does not count. `--long` adds J = 10 … 10 000 under 256 MiB.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gimli_core as gimli
from gimli_core.execution import Execution
from gimli_core.inputs import prepare
from gimli_core.measure import measure
from gimli_core.memory.budget import choose, estimate, least
from gimli_core.memory.cost import predict
from tests.benchmarks import mnist_mlp
from tests.benchmarks.measure import MIB, in_fresh_process
from tests.benchmarks.mnist_mlp import DATA, Workload

FIXED = ("autograd", "RetainGraphs()", "StoreStates()", "Checkpoint(10)", "Checkpoint(5)", "Checkpoint(2)")


def schedule_named(name: str) -> gimli.memory.Schedule:
    kind, argument = name.rstrip(")").split("(")
    return getattr(gimli.memory, kind)(*([int(argument)] if argument else []))


def resident(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def one(name: str, steps: int, data: Path) -> None:
    """Print the peak in bytes above the base, and the seconds, of one run."""

    def run(work: Workload) -> object:
        return work.autograd() if name == "autograd" else work.engine(schedule_named(name))

    whole, mnist_mlp.SIZES = mnist_mlp.SIZES, (784, 16, 16, 10)
    small = Workload(2, data)
    small.engine(gimli.memory.Budget("8GiB"))
    small.autograd()
    mnist_mlp.SIZES = whole
    work = Workload(steps, data)
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is this run's
    base, start = resident("VmRSS"), time.perf_counter()
    run(work)
    print(resident("VmHWM") - base, time.perf_counter() - start)


def costs_of(work: Workload):
    options = {"steps": work.steps, "phi_opt": {"lr": work.lr}, "phi_loss": work.log_l2}
    return measure(prepare(work.problem, work.theta_0, work.batch, work.val, **options), Execution)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--budgets", type=int, default=12, help="how many budgets between the least and twice all graphs"
    )
    parser.add_argument("--long", action="store_true", help="also J = 10, 100, 1000, 10000 under 256 MiB")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--one", help="print only this schedule's peak and seconds")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.steps, arguments.data)
        return
    J = arguments.steps

    def measured(name: str, steps: int) -> tuple[int, float]:
        options = ("--steps", str(steps), "--data", str(arguments.data), "--one", name)
        peak, seconds = in_fresh_process("tests.benchmarks.budget", *options).split()
        return int(peak), float(seconds)

    costs = costs_of(Workload(J, arguments.data))
    print(f"{'J':>6} {'schedule':24}{'peak MiB':>10}{'ratio':>7}{'predicted':>11}{'pred/meas':>11}{'seconds':>9}")

    def line(name: str, steps: int, predicted: int | None, reference: int | None) -> int:
        peak, seconds = measured(name, steps)
        ratio = "" if reference is None else f"{peak / reference:.2f}"
        told = "" if predicted is None else f"{predicted / MIB:.0f}"
        close = "" if predicted is None else f"{predicted / peak:.2f}"
        print(f"{steps:>6} {name:24}{peak / MIB:10.0f}{ratio:>7}{told:>11}{close:>11}{seconds:9.2f}", flush=True)
        return peak

    reference = line("autograd", J, None, None)
    for name in FIXED[1:]:
        line(name, J, predict(schedule_named(name).actions(J), costs).peak, reference)
    smallest = least(J, costs) * 1.02
    largest = 2 * estimate(gimli.memory.Checkpoint(1, graphs=J), J, costs)[0]
    for i in range(arguments.budgets):
        size = int(smallest * (largest / smallest) ** (i / max(arguments.budgets - 1, 1)))
        chosen = choose(gimli.memory.Budget(size), J, costs)
        peak = line(f"Budget({size})", J, predict(chosen.actions(J), costs).peak, reference)
        print(f"{'':7}{'kept' if peak <= size else 'EXCEEDED':8} {chosen}", flush=True)
    for steps in (10, 100, 1000, 10000) if arguments.long else ():
        line(f"Budget({256 << 20})", steps, None, None)


if __name__ == "__main__":
    main()
