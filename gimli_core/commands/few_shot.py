"""`gimli few-shot`: train a method of few-shot learning, evaluate it, and hold it against its paper."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import torch

from gimli_core.errors import printable, unexpected
from gimli_core.few_shot.data.images import LabelledImages
from gimli_core.few_shot.data.reading import KINDS, read
from gimli_core.few_shot.experiment import Experiment, Options
from gimli_core.few_shot.networks import NETWORKS
from gimli_core.few_shot.outcome import Outcome, read_outcome
from gimli_core.few_shot.recipes import RECIPES
from gimli_core.few_shot.table import save

__all__ = ["add_arguments", "run"]

TABLE = "table"
BELOW = "by method, below"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gimli few-shot`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"by method; a second number is that for the digits:\n{_by_method()}"
    said = "a method, or `table`: run all whose result is missing, and write the table"
    parser.add_argument("method", metavar="METHOD", choices=[*RECIPES, TABLE], help=f"{said}: {', '.join(RECIPES)}")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="an .npz, the folder of a published set, a folder of folders of images (scikit-learn's digits)",
    )
    parser.add_argument("--kind", choices=list(KINDS), help="how to read --data (by what it looks like)")
    parser.add_argument("--split", help="vinyals, ravi, cifar-fs, own or random (the data's own, or random)")
    parser.add_argument("--way", type=int, default=5, help="classes of a task (%(default)s)")
    parser.add_argument("--shot", type=int, default=1, help="images of each class that are shown (%(default)s)")
    parser.add_argument("--queries", type=int, default=5, help="images of each class that are asked (%(default)s)")
    parser.add_argument(
        "--rotations",
        action=argparse.BooleanOptionalAction,
        help="turned classes as classes (of grey images)",
    )
    parser.add_argument("--train-way", type=int, help=f"classes of a task in training ({BELOW})")
    parser.add_argument("--train-shot", type=int, help=f"images of each class that are shown in training ({BELOW})")
    parser.add_argument("--tasks", type=int, help=f"tasks in a meta-batch ({BELOW})")
    parser.add_argument("--steps", type=int, help=f"outer steps ({BELOW})")
    parser.add_argument("--rate", type=float, help=f"of the outer optimizer ({BELOW})")
    parser.add_argument("--network", choices=list(NETWORKS), help=f"that adapts or embeds ({BELOW})")
    parser.add_argument("--filters", type=int, help=f"of the network's convolutions ({BELOW})")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        help="convolutions of embeddings in bfloat16 (where the recipe says so)",
    )
    parser.add_argument("--episodes", type=int, default=600, help="held-out episodes of the evaluation (%(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of networks and episodes (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gimli_few_shot"),
        metavar="FOLDER",
        help="where checkpoints, logs and results go; a killed run goes on from there (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """0 when trained and evaluated."""
    torch.set_num_threads(1)  # tasks are small: more threads gain little, and lose much to any other load
    if arguments.rate is not None and not 0 < arguments.rate < float("inf"):
        raise unexpected("--rate", "a number above 0", str(arguments.rate), "Choose another.")
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    data = read(arguments.data, arguments.kind)
    if arguments.method != TABLE:
        print(printable(_outcome(arguments.method, data, options, arguments.out)))
        print(printable(f"written: {arguments.out / arguments.method}"))
        return 0
    # Everything is built once before anything is trained: what is wrong shows at once.
    done = {name: _collected(arguments.out / name / "result.json", Experiment(name, data, options)) for name in RECIPES}
    outcomes = []
    for name, outcome in done.items():
        outcomes.append(outcome or _outcome(name, data, options, arguments.out))
        print(printable(outcomes[-1]), flush=True)
    for path in save(outcomes, arguments.out):
        print(printable(f"written: {path}"))
    return 0


def _by_method() -> str:
    """What the recipes say of the options that each method has a default of its own for, as a table."""
    rows = [("", "train-way", "train-shot", "tasks", "steps", "rate", "network", "filters")]
    for name, recipe in RECIPES.items():
        for said, one in ((name, recipe), (f"{name}, photographs", replace(recipe, **recipe.photographs))):
            row = (
                str(one.train_way or "--way"),
                str(one.train_shot or "--shot"),
                str(one.tasks),
                f"{one.steps}, {one.quick_steps}",
                f"{one.rate:g}",
                one.network,
                f"{one.filters}, {one.quick_filters}",
            )
            if said == name or row != rows[-1][1:]:
                rows.append((said, *row))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _collected(path: Path, asked: Experiment) -> Outcome | None:
    """The result at `path`, if there is one. Raises ArgumentError if it is of other data or tasks than are asked."""
    if not path.is_file():
        return None
    outcome = read_outcome(path)
    said, expected = (f"{p.data}, {p.way}-way {p.shot}-shot" for p in (outcome.protocol, asked.protocol))
    if said != expected:
        raise unexpected(f"--out: {path}", f"a result for {expected}", f"one for {said}", "Give another --out.")
    return outcome


def _outcome(name: str, data: LabelledImages, options: Options, out: Path) -> Outcome:
    experiment = Experiment(name, data, options)
    return experiment.run(out / name, progress=True)
