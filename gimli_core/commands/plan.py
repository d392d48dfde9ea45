"""`gimli plan`: the memory schedules' predicted peak and time, on a multilayer perceptron of a given size."""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from gimli_core import optimizers
from gimli_core.errors import ArgumentError, explain
from gimli_core.problem import Problem
from gimli_core.runs.plan import plan

__all__ = ["add_arguments", "run"]

RULES = {
    rule.__name__.lower(): rule for rule in (optimizers.Adam, optimizers.AdamW, optimizers.SGD, optimizers.Adagrad)
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gimli plan`."""
    parser.add_argument("--steps", type=int, default=100, help="J, the number of inner steps")
    parser.add_argument("--sizes", default="784,512,512,10", help="layer widths, from input to output")
    parser.add_argument("--batch", type=int, default=128, help="examples in a batch")
    parser.add_argument("--optimizer", choices=sorted(RULES), default="adam")
    parser.add_argument("--compile", action="store_true", help="compile the steps first, and measure those")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan of the asked-for problem."""
    try:
        sizes = [int(n) for n in arguments.sizes.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 2 or min(sizes) < 1:
        raise ArgumentError(
            explain("--sizes", "at least two positive widths", repr(arguments.sizes), "For example 784,512,10.")
        )
    if arguments.batch < 1:
        raise ArgumentError(explain("--batch", "a positive number", str(arguments.batch), "For example 128."))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.batch, sizes[0], generator=generator)
    y = torch.randint(sizes[-1], (arguments.batch,), generator=generator)
    theta_0 = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        theta_0[f"w{i}"] = torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5
        theta_0[f"b{i}"] = torch.zeros(fan_out)

    def loss(theta: dict[str, Tensor], phi_loss: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        h = batch[0]
        for i in range(len(sizes) - 1):
            h = F.linear(h if i == 0 else torch.relu(h), theta[f"w{i}"], theta[f"b{i}"])
        return F.cross_entropy(h, batch[1])

    problem = Problem(loss, loss, RULES[arguments.optimizer]())
    options = {"steps": arguments.steps, "phi_opt": {"lr": torch.tensor(1e-3)}, "compile": arguments.compile}
    print(plan(problem, theta_0, lambda j: (x, y), (x, y), **options))
    return 0
