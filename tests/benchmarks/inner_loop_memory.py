"""Peak memory of the imperative inner loop, beside the engine with RetainGraphs, and `higher`.

    python -m tests.benchmarks.inner_loop_memory [--steps 20] [--optimizer SGD Adam]

MLP 784-512-512-10, batch 128, random data, a learned learning rate. Each peak in a process of its own, above what the
process held before the run.
"""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import gimli_core as gimli
from tests.benchmarks.history import add_history, noted
from tests.benchmarks.measure import MIB, in_fresh_process, peak_above_base

WAYS = {"inner_loop": "gimli_core.inner_loop", "RetainGraphs": "gimli_core", "higher": "higher"}


def runner(way: str, optimizer: str, steps: int) -> Callable[[], object]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10))
    x, y = torch.randn(128, 784), torch.randint(10, (128,))
    lr = torch.tensor(1e-3, requires_grad=True)
    opt = getattr(torch.optim, optimizer)(net.parameters(), lr=1e-3)  # here: the first one imports much
    library = importlib.import_module(WAYS[way])

    def engine() -> object:
        def loss(theta, phi, batch):
            return F.cross_entropy(functional_call(net, theta, (x,)), y)

        problem = gimli.Problem(loss, loss, getattr(gimli.optimizers, optimizer)(lr=1e-3))
        theta_0 = dict(net.named_parameters())
        return gimli.meta_gradient(problem, theta_0, lambda j: j, None, steps=steps, phi_opt={"lr": lr}, check=False)

    def loop() -> object:
        context = library.innerloop_ctx(net, opt, copy_initial_weights=False, override={"lr": [lr]})
        with context as (fmodel, diffopt):
            for _ in range(steps):
                diffopt.step(F.cross_entropy(fmodel(x), y))
            F.cross_entropy(fmodel(x), y).backward()
        return lr.grad

    return engine if way == "RetainGraphs" else loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--optimizer", nargs="+", default=["SGD", "Adam"])
    parser.add_argument("--peak", choices=WAYS, help="print only this way's peak, in bytes")
    add_history(parser)
    arguments = parser.parse_args()
    if arguments.peak:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(peak_above_base(lambda: runner(arguments.peak, arguments.optimizer[0], arguments.steps)))
        return
    with noted("inner_loop_memory", arguments) as run:
        for optimizer in arguments.optimizer:
            for way in WAYS:
                options = ("--steps", str(arguments.steps), "--optimizer", optimizer, "--peak", way)
                peak = int(in_fresh_process("tests.benchmarks.inner_loop_memory", *options))
                print(f"{optimizer:6}{way:14}{peak / MIB:8.0f} MiB", flush=True)
                run.note(f"{optimizer}/{way}/peak", peak, "bytes")


if __name__ == "__main__":
    main()
