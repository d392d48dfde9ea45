"""`gimli learn-optimizer`: an optimizer that is a network, trained in minutes, beside Adam tuned by as many steps."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from gimli_core.demo.data import load
from gimli_core.demo.learning_to_optimize import ARCHITECTURES, RULES, WINDOW, curve, learn, tuned_adam
from gimli_core.errors import unexpected
from gimli_core.memory.atomic_file import check_writable, writing

__all__ = ["add_arguments", "run"]

JUDGED, BEYOND, AROUND = 5, 2, 10  # runs; times the learned length; steps that a figure is the mean of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gimli learn-optimizer`."""
    parser.add_argument("--data", metavar="FILE", help=".npz or CSV with labels, MNIST say (scikit-learn's digits)")
    parser.add_argument("--rule", choices=sorted(RULES), default="lstm", help="kind of rule (%(default)s)")
    parser.add_argument(
        "--windows", type=int, default=200, help=f"meta-gradients, each of {WINDOW} inner steps (%(default)s)"
    )
    parser.add_argument("--episode", type=int, default=100, help="inner steps of a training run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, starts and batches (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="save the curves as .png, .pdf or .svg (not saved)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="save the rule's weights, for torch.load (not saved)")


def run(arguments: argparse.Namespace) -> int:
    """Train, tune, judge, and say who is ahead where."""
    for name, least in (("windows", 1), ("episode", WINDOW)):
        value = getattr(arguments, name)
        if value < least:
            raise unexpected(f"--{name}", f"a number >= {least}", str(value), "Raise it.")
    if arguments.out is not None:
        from gimli_core.demo.picture import check_path  # only a picture needs matplotlib

        check_path(arguments.out)
    if arguments.save is not None:
        check_writable("--save", arguments.save)
    splits = load(arguments.data, arguments.seed)
    rows, classes, episode, seed = splits.train, splits.classes, arguments.episode, arguments.seed
    made = RULES[arguments.rule]()
    size = sum(v.numel() for v in made.parameters(seed).values())
    print(f"{splits.name}: {len(rows.y)} rows to learn and tune on, {len(splits.test.y)} others to judge by")
    print(f"Learning {type(made).__name__} ({size} weights) on {ARCHITECTURES[0].name}")
    started, shown, learned = time.monotonic(), max(arguments.windows // 10, 1), None
    for number, learned in enumerate(learn(made, rows, classes, arguments.windows, episode, seed), 1):
        if number % shown == 0:
            seconds = time.monotonic() - started
            left = seconds / number * (arguments.windows - number)
            print(f"  window {number:4}  mean loss {learned.loss:.4f}  {seconds:4.0f} s, {left:.0f} s left", flush=True)
    if learned is None:
        print("No window ended with finite numbers: nothing was learned.")
        return 1
    if arguments.save is not None:
        with writing("--save", arguments.save) as file:
            torch.save(learned.net, file)
    adam, rates = tuned_adam(rows, classes, learned.steps, episode, seed)
    print(f"Adam, tuned by as many inner steps ({learned.steps}): the best of {len(rates)} rates is {adam.lr:.3g}")  # type: ignore[attr-defined]
    contenders = {"learned": type(made)(net=learned.net), "Adam, tuned": adam}
    panels = {
        architecture.name: {
            name: curve(rule, architecture, splits.test, classes, BEYOND * episode, "judge", range(JUDGED), seed)
            for name, rule in contenders.items()
        }
        for architecture in ARCHITECTURES
    }
    _tell(panels, episode)
    if arguments.out is not None:
        from gimli_core.demo.curves import save

        save(arguments.out, panels, episode)
        print(f"Curves in {arguments.out}")
    return 0


def _tell(panels: dict[str, dict[str, Tensor]], episode: int) -> None:
    """A table of losses along the way, and a verdict for each architecture; neither was tuned on the unseen ones."""
    points = (episode // 2, episode, BEYOND * episode)
    print(f"Training loss of {JUDGED} new runs on the other rows, mean ± its error, in the {AROUND} steps before")
    print(f"{'':36}{'':14}" + "".join(f"{point:>18}" for point in points))
    for number, (architecture, rules) in enumerate(panels.items()):
        label = architecture + (" (seen)" if number == 0 else "")
        for name, losses in rules.items():
            print(f"{label:44}{name:14}" + "".join(f"{_figure(losses, point):>18}" for point in points))
            label = ""
    for number, (architecture, rules) in enumerate(panels.items()):
        ahead = [_ahead(rules, point) for point in points]
        when = "; ".join(f"at {point}: {who}" for point, who in zip(points, ahead, strict=True))
        print(f"{architecture}{'' if number == 0 else ', never seen'}: {when}")


def _before(losses: Tensor, point: int) -> Tensor:
    return losses[:, max(point - AROUND, 0) : point].mean(1)


def _figure(losses: Tensor, point: int) -> str:
    each = _before(losses, point)
    return f"{each.mean():.4f} ± {each.std() / len(each) ** 0.5:.4f}"


def _ahead(rules: dict[str, Tensor], point: int) -> str:
    """Who has the lower loss, if by more than twice the standard error of the difference, run by run."""
    (one, first), (other, second) = ((name, _before(losses, point)) for name, losses in rules.items())
    difference = first - second
    if not bool(torch.isfinite(difference).all()):
        broken = [name for name, each in ((one, first), (other, second)) if not bool(torch.isfinite(each).all())]
        return f"{' and '.join(broken)} broke"
    if difference.mean().abs() <= 2 * difference.std() / len(difference) ** 0.5:
        return "no difference beyond chance"
    return f"{one if difference.mean() < 0 else other} ahead"
