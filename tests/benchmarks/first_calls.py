"""The first call in a process: with nothing on the disk, and again in a second process, against what torch takes alone.

    python -m tests.benchmarks.first_calls [--only sinusoid mnist omniglot] [--repeats 5] [--data PATH]

Every call is a process's first, and counts what it takes beyond the second one: importing the compiler, compiling, and
what else is done once. Side by side, on the same workload (tests/benchmarks/speed/workloads.py):

    ours            `gimli.meta_gradient(…, compile=True)`, all of it: checks, the trial against eager steps, the run
    torch           `torch.compile` of the gradient of L_val, and of one step with its pullback, in plain torch.func
    torch, x*2+1    `torch.compile` of that, for what is torch's own whatever is compiled

The second processes take turns (A B C A B C …) with what the first one of each has left on the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.benchmarks.history import add_history, noted
from tests.benchmarks.measure import beyond_the_second, in_fresh_process
from tests.benchmarks.speed import ours, rules
from tests.benchmarks.speed.peers_torch import of_all_tasks
from tests.benchmarks.speed.workloads import DATA, Workload, build

MODULE = "tests.benchmarks.first_calls"
WORKLOADS = ("sinusoid", "mnist", "omniglot")


def of_ours(work: Workload) -> Callable[[], Any]:
    return ours.prepare(work, compile=True)


def of_torch(work: Workload) -> Callable[[], Any]:
    """Two compiled functions, called once each: what a step-by-step sweep needs of a problem."""
    train_loss, val_loss = of_all_tasks(work, work.train_loss), of_all_tasks(work, work.val_loss)
    theta = {k: v.expand(work.tasks, *v.shape).contiguous() if work.tasks else v for k, v in work.theta_0.items()}
    state, corrections = rules.start(work.rule, theta, torch.zeros_like), rules.corrections(0)

    def step(theta: Any, state: Any, lr: Any, phi_loss: Any, batch: Any) -> Any:
        G = torch.func.grad(train_loss)(theta, phi_loss, batch)
        return rules.step(work.rule, theta, state, G, lr, corrections, torch.sqrt)

    def step_and_pullback(theta: Any, state: Any, lr: Any, phi_loss: Any, batch: Any, B: Any) -> Any:
        after, pull = torch.func.vjp(lambda *given: step(*given, batch), theta, state, lr, phi_loss)
        return after, pull((B, after[1]))  # any adjoint of the state does

    validation = torch.compile(torch.func.grad(val_loss), fullgraph=True, dynamic=False)
    both = torch.compile(step_and_pullback, fullgraph=True, dynamic=False)
    lr = work.lr if isinstance(work.lr, dict) else torch.as_tensor(work.lr)

    def run() -> Any:
        with torch.no_grad():
            return both(theta, state, lr, work.phi_loss, work.batch(0), validation(theta, work.phi_loss, work.val))

    return run


def of_little(_: Workload) -> Callable[[], Tensor]:
    compiled = torch.compile(lambda x: x * 2 + 1)
    return lambda: compiled(torch.ones(3))


WHO: dict[str, Callable[[Workload], Callable[[], Any]]] = {
    "ours": of_ours,
    "torch": of_torch,
    "torch, x*2+1": of_little,
}


def each_taken(workload: str, data: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each, by process: with nothing on the disk, then with what that one has left there."""
    taken: dict[str, list[float]] = {who: [] for who in WHO}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 + repeats):
            for place, who in enumerate(WHO):
                with mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(Path(folder, str(place)))):
                    out = in_fresh_process(MODULE, "--data", str(data), "--process", workload, who)
                taken[who].append(float(out.splitlines()[-1]))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of mnist.npz and omniglot28.npz")
    parser.add_argument("--process", nargs=2, metavar=("WORKLOAD", "WHO"), help="print only what this process takes")
    add_history(parser)
    given = parser.parse_args()
    if given.process:
        workload, who = given.process
        work = build(workload, given.data).to("cpu", torch.float32)
        print(beyond_the_second(WHO[who](work)))
        return
    print(f"seconds beyond the second call, {torch.get_num_threads()} threads")
    print(f"{'':26}{'cold':>8}{'second process: median, least, most':>38}", flush=True)
    with noted("first_calls", given) as run:
        for workload in given.only:
            for who, (cold, *again) in each_taken(workload, given.data, given.repeats).items():
                spread = f"{statistics.median(again):20.2f}{min(again):9.2f}{max(again):9.2f}"
                print(f"{workload:12}{who:14}{cold:8.1f}{spread}", flush=True)
                run.note(f"{workload}/{who}/cold", cold, "s")
                run.note(f"{workload}/{who}/in a second process", again, "s")


if __name__ == "__main__":
    main()
