"""`inner_loop` against higher on very small networks, where a step's time is Python's.

    python -m tests.benchmarks.inner_loop_small [--only RULE …] [--repeats 40]

Sinusoids, 20 points of one (Finn et al. 2017, section 5.1); networks 1-8-8-1 and 1-40-40-1 with tanh; 5 and 20 steps;
one backward pass down to the start. Both libraries run the same lines in turn (A B A B …) in one process, on one
thread, and must come to the same loss and gradient. Times are those of the processor, ratios are medians over the
pairs. Under Adam they come to different numbers: higher follows an older formula, so that is not held to agree.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

import gimli_core.inner_loop
from tests.benchmarks.history import add_history, noted
from tests.benchmarks.measure import paired_times, ratios
from tests.benchmarks.speed.workloads import sinusoid_net, sinusoids

RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}
SIZES = [(8, 5), (40, 5), (40, 20)]  # width, inner steps


def adapted(library: Any, net: nn.Module, rule: str, steps: int, train: Any, val: Any) -> float:
    """The validation loss after the steps; its gradient is in the network's `.grad`."""
    net.zero_grad()
    inner = RULES[rule](net.parameters())
    with library.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, differentiable):
        for _ in range(steps):
            differentiable.step(mse_loss(fast(train[0]), train[1]))
        loss = mse_loss(fast(val[0]), val[1])
        loss.backward()
    return float(loss)


def main() -> None:
    import higher

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES), metavar="RULE")
    parser.add_argument("--repeats", type=int, default=40)
    add_history(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    x, y = sinusoids(1, 40)
    data = (x[0, :20], y[0, :20]), (x[0, 20:], y[0, 20:])
    libraries = {"inner_loop": gimli_core.inner_loop, "higher": higher}
    with noted("inner_loop_small", given) as run:
        print(f"{'rule':10}{'width':>6}{'steps':>6}{'inner_loop':>12}{'higher':>10}{'higher / inner_loop':>21}")
        for rule in given.only:
            for width, steps in SIZES:
                net = sinusoid_net(width, nn.Tanh)
                runs = {name: partial(adapted, of, net, rule, steps, *data) for name, of in libraries.items()}
                found = {}
                for name, once in runs.items():
                    found[name] = [torch.tensor(once()), *[p.grad.clone() for p in net.parameters()]]
                if rule != "Adam":
                    torch.testing.assert_close(found["inner_loop"], found["higher"], rtol=1e-3, atol=1e-5)
                seconds = paired_times(runs, given.repeats, time.process_time)
                for name, taken in seconds.items():
                    run.note(f"{rule}/{width} wide, {steps} steps/{name}/processor time", taken, "s")
                times = "".join(f"{1e3 * statistics.median(taken):7.2f} ms" for taken in seconds.values())
                of_pairs = ratios(seconds["higher"], seconds["inner_loop"])
                run.note(f"{rule}/{width} wide, {steps} steps/higher over inner_loop", of_pairs, "ratio")
                print(f"{rule:10}{width:6}{steps:6}  {times}{statistics.median(of_pairs):15.2f}", flush=True)


if __name__ == "__main__":
    main()
