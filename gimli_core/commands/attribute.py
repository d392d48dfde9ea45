"""`gimli attribute`: score training examples, hold the scores against retraining, find wrong labels, draw."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from gimli_core.attribution import picture
from gimli_core.attribution.classification import (
    QUANTILES,
    Queries,
    Setting,
    flagged,
    hard_queries,
    logits,
    output_loss,
    outputs,
    plant,
    setting,
)
from gimli_core.attribution.influence import MOST_PARAMETERS, influence_scores
from gimli_core.attribution.leave_out import LeaveOut, leave_out
from gimli_core.attribution.metasmoothness import metasmoothness
from gimli_core.attribution.scores import Scores, scores
from gimli_core.demo.data import Splits, load
from gimli_core.demo.picture import check_path
from gimli_core.errors import printable, unexpected
from gimli_core.evaluation.adapt import adapt
from gimli_core.memory.atomic_file import check_writable

__all__ = ["add_arguments", "run"]

RANGES = {"examples": (40, 10_000), "steps": (1, 100_000), "subsets": (2, 100_000), "seed": (0, (1 << 40) - 1)}
PLANTED = 0.05  # of the digits' labels; of a user's data none, unless it is asked for
HARMFUL = 10  # rows that are named
LEFT_OUT = 0.1  # of the examples, in each subset
DAMPINGS = (0.1, 1e-2, 1e-3)
SHOWN = 4  # examples that helped, and as many that hurt, a query
H = 0.5  # weights move from 1 to 1 ± h and 1 ± 2h


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gimli attribute`."""
    parser.add_argument("--data", metavar="PATH", help=".npz or CSV file (scikit-learn's handwritten digits)")
    parser.add_argument(
        "--out", metavar="PATH", type=Path, default=Path("gimli_attribute.png"), help="picture (%(default)s)"
    )
    parser.add_argument(
        "--scores",
        metavar="PATH",
        type=Path,
        help=".npz to write the scores to, query by query, [queries, training rows], and as `rows` where these stand "
        "in the data; an old one is gone on with (not written)",
    )
    parser.add_argument(
        "--examples", metavar="N", type=int, default=500, help="training examples, at most (%(default)s)"
    )
    parser.add_argument("--steps", metavar="J", type=int, default=100, help="AdamW steps of a training (%(default)s)")
    parser.add_argument("--subsets", metavar="M", type=int, default=60, help="trainings without a tenth (%(default)s)")
    parser.add_argument(
        "--planted",
        metavar="SHARE",
        type=float,
        help=f"share of the labels made wrong, to see whether they are found ({PLANTED} of the digits, 0 of --data)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split, the start, batches, subsets (%(default)s)")


class _Data(NamedTuple):
    x: Tensor
    y: Tensor  # with wrong labels planted
    planted: Tensor
    rows: Tensor  # [N], in the data


def run(arguments: argparse.Namespace) -> int:
    """0."""
    for name, (least, most) in RANGES.items():
        value = getattr(arguments, name)
        if not least <= value <= most:
            raise unexpected(f"--{name}", f"a whole number from {least} to {most:,}", str(value), "Choose another.")
    share = arguments.planted if arguments.planted is not None else PLANTED if arguments.data is None else 0.0
    if not 0 <= share <= 0.5:
        raise unexpected("--planted", "a share of the labels from 0 to 0.5", str(share), "Choose another.")
    check_path(arguments.out)
    if arguments.scores is not None:
        check_writable("--scores", arguments.scores)
    torch.set_num_threads(1)  # matrices this small gain nothing from more
    console = Console()
    splits = load(arguments.data, arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    some = torch.randperm(len(splits.train.y), generator=generator)[: arguments.examples]
    y, planted = plant(splits.train.y[some], splits.classes, share, generator)
    data = _Data(splits.train.x[some], y, planted, splits.rows["train"][some])
    made = setting(data.x, data.y, splits.classes, arguments.steps, generator)
    theta_J = adapt(made.problem, made.theta_0, made.batches, phi_loss=made.phi_loss).theta_J
    test, val = splits.test, splits.val
    numbers, queries = hard_queries(theta_J, test.x, test.y, val.x, val.y)
    right = (logits(theta_J, splits.test.x).argmax(1) == splits.test.y).double().mean()
    wrong = f", {int(planted.sum())} of them with a wrong label that was planted" if planted.any() else ""
    console.print(
        f"Data: {printable(splits.name)}: {len(y)} training rows{wrong}.\n"
        f"Trained by {arguments.steps} steps of AdamW: {100 * right:.1f} % of the test rows correct.",
        highlight=False,
        markup=False,
    )
    smooth = metasmoothness(made.problem, made.theta_0, made.batches, phi_loss=made.phi_loss, h=H, seed=arguments.seed)
    console.print(f"Metasmoothness: {smooth.value:.3f} of 1 (weights 1, 1 ± {H}, 1 ± {2 * H}).", highlight=False)

    methods = _scored(console, made, queries, theta_J, arguments)
    with _shown(console, "retraining") as told:
        trial = leave_out(
            made.problem,
            made.theta_0,
            made.batches,
            queries,
            phi_loss=made.phi_loss,
            subsets=arguments.subsets,
            share=LEFT_OUT,
            seed=arguments.seed,
            told=told,
        )
    console.print(_table(trial, methods, planted))
    exact = next(iter(methods.values()))
    named = [f"{data.rows[i]} (class {y[i]})" for i in exact.values[-1].topk(min(HARMFUL, len(y))).indices.tolist()]
    told_harmful = f"Rows of the data, from 0, that most raise the validation loss: {', '.join(named)}."
    console.print(told_harmful, highlight=False, markup=False)
    drawn = _rows(splits, data, exact, queries, splits.rows["test"][numbers])
    picture.save(arguments.out, drawn, planted=bool(planted.any()))
    console.print(f"Picture: {printable(arguments.out)}", highlight=False, markup=False, soft_wrap=True)
    if arguments.scores is not None:
        replace(exact, rows=data.rows).save(arguments.scores)
        console.print(f"Scores: {printable(arguments.scores)}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _scored(
    console: Console, made: Setting, queries: Queries, theta_J: dict[str, Tensor], arguments: argparse.Namespace
) -> dict[str, Scores]:
    """By method, the meta-gradient first."""
    with _shown(console, "scoring") as told:
        exact = scores(
            made.problem,
            made.theta_0,
            made.batches,
            queries,
            phi_loss=made.phi_loss,
            at_once=None if arguments.scores is None else 1,
            resume=arguments.scores,
            told=told,
        )
    size = sum(v.numel() for v in theta_J.values())
    if size > MOST_PARAMETERS:
        console.print(f"Influence functions left out: a matrix for {size:,} parameters is too large.")
        return {"meta-gradient": exact}
    with console.status(f"Gauss-Newton, of {size} parameters"):
        baseline = influence_scores(
            made.problem,
            theta_J,
            [made.full_batch],
            queries,
            phi_loss=made.phi_loss,
            damping=DAMPINGS,
            outputs=outputs,
            output_loss=output_loss,
        )
    return {"meta-gradient": exact, **{f"influence ({d:g})": at_damping for d, at_damping in baseline.items()}}


@contextmanager
def _shown(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description:10}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _table(trial: LeaveOut, methods: dict[str, Scores], planted: Tensor) -> Table:
    count = int(planted.sum())
    caption = (
        f"LDS: rank correlation of predicted and retrained losses over {len(trial.changes)} random subsets of "
        f"{100 * LEFT_OUT:.0f} % left out; mean over {len(QUANTILES)} test rows and the validation loss, its 95 % "
        "interval over subsets, least and most of a query."
    )
    if count:
        caption += (
            f" Wrong labels: precision/recall of the {count}, and of the {2 * count}, rows that most raise the "
            "validation loss."
        )
    caption += " Influence functions (damping) are of the exact Gauss-Newton matrix."
    columns = ["", "LDS", "95 %", "of a query", *(["wrong labels"] if count else [])]
    table = Table(*columns, box=SIMPLE, pad_edge=False, caption=caption)
    table.columns[0].no_wrap = True
    for name, of_method in methods.items():
        rho, (low, high) = trial.lds(of_method), trial.interval(of_method)
        cells = [name, f"{rho.mean():.3f}", f"{low:.2f}, {high:.2f}", f"{rho.min():.2f}, {rho.max():.2f}"]
        if count:
            harm = of_method.values[-1]
            guesses = [flagged(harm, planted, min(n, len(harm))) for n in (count, 2 * count)]
            cells.append(", ".join(f"{precision:.2f}/{recall:.2f}" for precision, recall in guesses))
        table.add_row(*cells)
    return table


def _rows(
    splits: Splits, data: _Data, exact: Scores, queries: Queries, numbers: Tensor
) -> list[tuple[picture.Example, list[picture.Example], list[picture.Example]]]:
    """For each test row, the examples that helped it most and those that hurt it most, as they were measured."""

    def raw(x: Tensor) -> Tensor:
        """As it was in the data; of what is no image as the network sees it, each feature on the same scale."""
        return x.double() * splits.deviation + splits.mean if picture.is_image(len(x)) else x

    def example(i: int, score: Tensor) -> picture.Example:
        title = f"{data.rows[i]}, class {int(data.y[i])}\n{float(score):+.1e}"
        return picture.Example(raw(data.x[i]), title, bool(data.planted[i]))

    rows = []
    for q, number in enumerate(numbers.tolist()):
        of_query = exact.values[q]
        query = picture.Example(raw(queries.x[q]), f"test: {number}\nclass {int(queries.y[q])}")
        order = of_query.argsort().tolist()
        good = [example(i, of_query[i]) for i in order[:SHOWN]]
        bad = [example(i, of_query[i]) for i in order[::-1][:SHOWN]]
        rows.append((query, good, bad))
    return rows
