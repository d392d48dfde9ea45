"""`gimli plan`: the memory schedules' predicted peak and time, on a multilayer perceptron of a given size."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gimli_core import optimizers
from gimli_core.commands.source import users_arguments, users_code
from gimli_core.errors import listing, unexpected
from gimli_core.problem import Problem
from gimli_core.runs.plan import plan

__all__ = ["add_arguments", "run"]

RULES = {
    rule.__name__.lower(): rule for rule in (optimizers.Adam, optimizers.AdamW, optimizers.SGD, optimizers.Adagrad)
}


DEFAULTS: dict[str, Any] = {"steps": 100, "sizes": "784,512,512,10", "batch": 128, "optimizer": "adam"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gimli plan`."""
    parser.add_argument(
        "problem",
        nargs="?",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns those of gimli.plan: a dict, or (problem, dict of the rest); "
        "by default a perceptron of --sizes",
    )
    parser.add_argument("--steps", type=int, help=f"J, the number of inner steps ({DEFAULTS['steps']})")
    parser.add_argument("--sizes", help=f"layer widths, from input to output ({DEFAULTS['sizes']})")
    parser.add_argument("--batch", type=int, help=f"examples in a batch ({DEFAULTS['batch']})")
    parser.add_argument("--optimizer", choices=sorted(RULES), help=f"the rule ({DEFAULTS['optimizer']})")
    parser.add_argument("--compile", action="store_true", help="compile the steps first, and measure those")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan of the asked-for problem."""
    sizes = [f"--{name}" for name in DEFAULTS if getattr(arguments, name) is not None]
    if arguments.problem and sizes:
        do = "The function says all but --compile."
        raise unexpected("gimli plan", "MODULE:FUNCTION or a perceptron's sizes", listing(sizes), do)
    if arguments.problem:
        asked = users_arguments(arguments.problem, plan, "gimli.plan")
        asked["compile"] = arguments.compile or asked.get("compile", False)
        with users_code(arguments.problem):
            made = plan(**asked)
    else:
        chosen = {
            name: default if getattr(arguments, name) is None else getattr(arguments, name)
            for name, default in DEFAULTS.items()
        }
        made = plan(**_perceptron(**chosen), compile=arguments.compile)
        print(f"a perceptron of widths {chosen['sizes']}, batches of {chosen['batch']}")
    print(made)
    return 0


def _perceptron(steps: int, sizes: str, batch: int, optimizer: str) -> dict[str, Any]:
    """The arguments of `plan` for a multilayer perceptron of these widths."""
    try:
        widths = [int(n) for n in sizes.split(",")]
    except ValueError:
        widths = []
    if len(widths) < 2 or min(widths) < 1:
        raise unexpected("--sizes", "at least two positive widths", repr(sizes), "For example 784,512,10.")
    if batch < 1:
        raise unexpected("--batch", "a positive number", str(batch), "For example 128.")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, widths[0], generator=generator)
    y = torch.randint(widths[-1], (batch,), generator=generator)
    theta_0 = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        theta_0[f"w{i}"] = torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5
        theta_0[f"b{i}"] = torch.zeros(fan_out)

    def loss(theta: dict[str, Tensor], phi_loss: dict[str, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
        h = rows[0]
        for i in range(len(widths) - 1):
            h = F.linear(h if i == 0 else torch.relu(h), theta[f"w{i}"], theta[f"b{i}"])
        return F.cross_entropy(h, rows[1])

    return {
        "problem": Problem(loss, loss, RULES[optimizer]()),
        "theta_0": theta_0,
        "train_batches": lambda j: (x, y),
        "val_batch": (x, y),
        "steps": steps,
        "phi_opt": {"lr": torch.tensor(1e-3)},
    }
