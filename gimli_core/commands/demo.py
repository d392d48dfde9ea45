"""`gimli demo`: learn, compare, draw, verify."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gimli_core.demo import picture
from gimli_core.demo.data import Labelled, load
from gimli_core.demo.learning import (
    GRID_RUNS_A_RATE,
    START_L2,
    START_LR,
    WORK_OF_A_META_GRADIENT,
    Hyperparameters,
    Training,
    grid,
    grid_rates,
    learn,
    score,
    train,
)
from gimli_core.errors import printable, unexpected
from gimli_core.verification.check import Check, Verdict
from gimli_core.verification.report import Report
from gimli_core.verification.verify import verify

__all__ = ["add_arguments", "run"]

# From a seed, numbers of 64 bits are made.
RANGES = {"outer_steps": (1, 100_000), "inner_steps": (1, 100_000), "seed": (0, (1 << 40) - 1)}
TABLE_RUNS = 10
VERIFIED_STEPS = 20  # finite differences run the inner loop some 500 times


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gimli demo`."""
    parser.add_argument("--data", metavar="PATH", help=".npz or CSV file (scikit-learn's handwritten digits)")
    parser.add_argument(
        "--out", metavar="PATH", type=Path, default=Path("gimli_demo.png"), help="picture (%(default)s)"
    )
    parser.add_argument("--outer-steps", metavar="N", type=int, default=60, help="meta-gradients taken (%(default)s)")
    parser.add_argument("--inner-steps", metavar="J", type=int, default=50, help="Adam steps under each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, starts and batches (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 if an oracle disagrees with the meta-gradient."""
    for name, (least, most) in RANGES.items():
        value = getattr(arguments, name)
        option = f"--{name.replace('_', '-')}"
        if value < least:
            raise unexpected(option, f"a whole number from {least}", str(value), "Choose a larger one.")
        if value > most:
            raise unexpected(option, f"a whole number up to {most:,}", str(value), "Choose a smaller one.")
    picture.check_path(arguments.out)
    torch.set_num_threads(1)  # matrices this small gain nothing from more, and lose much to any other load
    console = Console()
    splits = load(arguments.data, arguments.seed)
    rows = f"{len(splits.train.y)} training, {len(splits.val.y)} validation and {len(splits.test.y)} test rows"
    console.print(f"Data: {printable(splits.name)}: {rows}, {splits.classes} classes.", highlight=False, markup=False)

    training = Training(splits, arguments.inner_steps, arguments.seed)
    rates = grid_rates(arguments.outer_steps)
    met, learned = zip(
        *_shown(console, "learning", learn(training, arguments.outer_steps), arguments.outer_steps), strict=True
    )
    tried = list(_shown(console, "grid", grid(training, rates), len(rates)))
    best_loss, best = min(tried, key=lambda entry: entry[0] if math.isfinite(entry[0]) else math.inf)
    best_lr = next(iter(best.lr.values())).item()
    contenders = {
        "before: defaults": training.constant(START_LR, START_L2),
        f"best rate: {best_lr:.3g}": best,
        "after: learned": learned[-1],
    }
    console.print(_budget(arguments.outer_steps, arguments.inner_steps, len(rates)), highlight=False)
    console.print(_comparison(training, contenders), _values(learned[-1]))
    picture.save(arguments.out, met, learned, best_loss, best_lr)
    console.print(f"Picture: {printable(arguments.out)}", highlight=False, markup=False, soft_wrap=True)

    with console.status("verifying the meta-gradient"):
        report = _verification(training, learned[-1])
    console.print(
        f"Checked: the meta-gradient through {min(training.steps, VERIFIED_STEPS)} steps of a new run, in float64."
    )
    console.print(_verdicts(report), Text(report.headline, "green" if report.ok else "bold red"))
    return 0 if report.ok else 1


def _shown(
    console: Console, title: str, steps: Iterable[tuple[float, Hyperparameters]], total: int
) -> Iterator[tuple[float, Hyperparameters]]:
    """The same steps, with a progress bar that shows the latest validation loss and the least."""
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description:8}"), BarColumn(20), MofNCompleteColumn(), note, TimeRemainingColumn())
    least = math.inf
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, note="")
        for loss, values in steps:
            least = min(least, loss)
            progress.update(task, advance=1, note=f"loss {loss:.4f}, least {least:.4f}")
            yield loss, values


def _budget(outer_steps: int, inner_steps: int, rates: int) -> str:
    return (
        f"Learning: {outer_steps} meta-gradients through {inner_steps} Adam steps, each the work of "
        f"{WORK_OF_A_META_GRADIENT} training runs (9F against 3F a step).\n"
        f"Grid, for the same work: {rates} fixed learning rates x {GRID_RUNS_A_RATE} runs of {inner_steps} steps."
    )


def _comparison(training: Training, contenders: dict[str, Hyperparameters]) -> Table:
    caption = f"mean ± standard error of {TABLE_RUNS} new runs of {training.steps} steps in torch.optim.Adam"
    table = Table("", "val. loss", "correct, %", "test loss", "correct, %", box=SIMPLE, caption=caption)
    for name, values in contenders.items():
        runs = [train(training, values, "table", number) for number in range(TABLE_RUNS)]
        cells = []
        for rows in (training.splits.val, training.splits.test):
            losses, correct = zip(*(score(training, theta, rows) for theta in runs), strict=True)
            cells += [_mean(losses, "{:.3f}"), _mean([100 * share for share in correct], "{:.1f}")]
        table.add_row(name, *cells)
    return table


def _mean(values: Sequence[float], form: str) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{form.format(statistics.fmean(values))} ± {form.format(error)}"


def _values(learned: Hyperparameters) -> Table:
    caption = f"beta1 = {learned.beta1.item():.4g}, beta2 = {learned.beta2.item():.6g}"
    table = Table("learned", "learning rate", "L2 penalty", box=SIMPLE, caption=caption)
    for name in learned.lr:
        table.add_row(name, f"{learned.lr[name].item():.3g}", f"{learned.log_l2[name].exp().item():.2g}")
    return table


def _verification(training: Training, values: Hyperparameters) -> Report:
    """The engine's meta-gradient of a new run's first steps at the learned values, in float64, against two oracles."""

    def double(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.double() for name, tensor in tensors.items()}

    theta_0, batches = training.run("verify", 0)
    precise = Hyperparameters(double(values.lr), values.beta1.double(), values.beta2.double(), double(values.log_l2))
    return verify(
        training.problem,
        double(theta_0),
        [Labelled(batch.x.double(), batch.y) for batch in batches[:VERIFIED_STEPS]],
        Labelled(training.splits.val.x.double(), training.splits.val.y),
        phi_opt=precise.phi_opt,
        phi_loss=precise.log_l2,
        oracles=("autograd", "finite_differences"),
    )


def _verdicts(report: Report) -> Table:
    """One line an entry: its relative distance from each oracle, and the verdict where it is not ok."""
    rows: dict[str, list[Check]] = {}
    for check in report.checks:
        rows.setdefault(check.name, []).append(check)
    table = Table("meta-gradient", "value or norm", "off autograd", "off finite diff.", box=SIMPLE, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, checks in rows.items():
        cells = {check.oracle.split(",")[0]: _distance(check) for check in checks}
        distances = [cells.get(oracle, Text("-")) for oracle in ("autograd", "finite differences")]
        table.add_row(Text(name), f"{checks[0].value:.6g}", *distances)
    return table


def _distance(check: Check) -> Text:
    if check.verdict is Verdict.OK:
        return Text(f"{check.error:.0e}", "green")
    return Text(
        f"{check.error:.0e} {check.verdict.value}", "bold red" if check.verdict is Verdict.DISAGREES else "yellow"
    )
