"""Time and peak memory of the three means of second-order products.

    python -m tests.benchmarks.second_order [--model mlp transformer transformer-rms] [--steps 10] [--repeats 3]

The MLP (784-512-512-10, batch 128, Adam, on MNIST) and the transformer (2 layers, width 256, context 128, AdamW) of the
other benchmarks, under RetainGraphs and StoreStates. CPU seconds are taken in turn in one process; each peak in a
process of its own, above what it held after a run of two steps. Means that fall back are named with what takes their
place. `transformer-rms` has RMSNorm in place of LayerNorm, which reverse over forward cannot go through.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import prepare
from gimli_core.derivatives.second_order import MEANS
from gimli_core.requirements.examine import require
from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import MIB, in_fresh_process, median_ratio, peak_above_base, ratios
from tests.benchmarks.mnist_mlp import DATA, Workload
from tests.benchmarks.models import Block, Work

MODELS = ("mlp", "transformer", "transformer-rms")
SCHEDULES = ("RetainGraphs", "StoreStates")


class RMSWork(Work):
    def __init__(self, steps: int) -> None:
        super().__init__("transformer", steps)
        for block in self.net.blocks:
            assert isinstance(block, Block)
            block.norms = nn.ModuleList(nn.RMSNorm(norm.normalized_shape) for norm in block.norms)
        self.net.norm = nn.RMSNorm(self.net.norm.normalized_shape)
        self.theta_0 = {k: v.detach() for k, v in self.net.named_parameters()}
        self.lr = {k: torch.tensor(1e-3) for k in self.theta_0}


def arguments(model: str, steps: int, data: Path) -> dict:
    if model != "mlp":
        return (RMSWork(steps) if model == "transformer-rms" else Work(model, steps)).arguments()
    work = Workload(steps, data)
    return {
        "problem": work.problem,
        "theta_0": work.theta_0,
        "train_batches": work.batch,
        "val_batch": work.val,
        "steps": steps,
        "phi_opt": {"lr": work.lr},
        "phi_loss": work.log_l2,
    }


def runner(given: dict, mean: str, schedule: str) -> Callable[[], dict[str, Tensor]]:
    memory = getattr(gimli.memory, schedule)()
    return lambda: gimli.meta_gradient(**given, second_order=mean, memory=memory, compile=False).A_opt["lr"]


def used(given: dict, mean: str) -> str:
    """The mean that is used where `mean` is asked for."""
    return require(prepare(Call(**given, second_order=mean)), replays=True).form.second_order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peak", nargs=2, metavar=("MEAN", "SCHEDULE"), help="print only this peak, in bytes")
    add_history(parser)
    chosen = parser.parse_args()
    if chosen.peak:
        model = chosen.model[0]

        def prepared() -> Callable[[], dict[str, Tensor]]:
            runner(arguments(model, 2, chosen.data), *chosen.peak)()
            given = arguments(model, chosen.steps, chosen.data)
            used(given, chosen.peak[0])  # examined here, so that the run is not
            return runner(given, *chosen.peak)

        print(peak_above_base(prepared))
        return
    torch.set_num_threads(chosen.threads)
    print(f"J = {chosen.steps}, {torch.get_num_threads()} threads; ratios to reverse_over_reverse under RetainGraphs")
    print(f"{'':17}{'':14}{'':24}{'CPU s':>9}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}{'off by':>10}")
    with noted("second_order", chosen) as noting:
        for model in chosen.model:
            table(model, chosen, noting)


def table(model: str, chosen: argparse.Namespace, noting: Run) -> None:
    """One model's rows."""
    given = arguments(model, chosen.steps, chosen.data)
    fallback = {mean: used(given, mean) for mean in MEANS}
    keys = [(schedule, mean) for schedule in SCHEDULES for mean in MEANS if fallback[mean] == mean]
    runs = {f"{s} {m}": runner(given, m, s) for s, m in keys}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    found = {name: run() for name, run in runs.items()}  # and warm
    for _ in range(chosen.repeats):
        for name, run in runs.items():
            start = time.process_time()  # other work on the machine counts little
            run()
            seconds[name].append(time.process_time() - start)
    expected = next(iter(found.values()))
    first_peak = 0
    for schedule, mean in keys:
        options = ("--model", model, "--steps", str(chosen.steps), "--data", str(chosen.data))
        options += ("--peak", mean, schedule)
        peak = int(in_fresh_process("tests.benchmarks.second_order", *options))
        first_peak = first_peak or peak
        name, first = f"{schedule} {mean}", next(iter(runs))
        off = max(((found[name][k] - g).abs().max() / g.abs().max()).item() for k, g in expected.items())
        ratio = median_ratio(seconds[name], seconds[first])
        noting.note(f"{model}/{name}/processor time", seconds[name], "s")
        noting.note(f"{model}/{name}/processor time ratio", ratios(seconds[name], seconds[first]), "ratio")
        noting.note(f"{model}/{name}/peak", peak, "bytes")
        print(
            f"{model:17}{schedule:14}{mean:24}{statistics.median(seconds[name]):9.2f}{ratio:7.2f}"
            f"{peak / MIB:10.0f}{peak / first_peak:7.2f}{off:10.0e}",
            flush=True,
        )
    for mean, other in fallback.items():
        if other != mean:
            print(f"{model:17}{mean} falls back to {other}")


if __name__ == "__main__":
    main()
