"""The largest J that this engine and its peers finish within 8 GiB, on the MLP of `mnist_mlp.py` under Adam.

    python -m tests.benchmarks.budget_peers [--limit 8] [--at 5 15] [--confirm] [--only higher torchopt …]

Each peak is that of a fresh process above what it held before the run, at the two J of `--at`; the largest J is where
the line through them meets the limit. `--confirm` runs each once more at 95 % of it. The peers are optional
(`pip install higher torchopt jax`); one that is missing is named and left out. JAX compiles before it runs: its peak
is measured with the compiler's.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import gimli_core as gimli
from tests.benchmarks import history
from tests.benchmarks.measure import MIB, in_fresh_process, peak_above_base
from tests.benchmarks.mnist_mlp import DATA, Workload, train_loss, val_loss

PEERS = ("autograd", "higher", "torchopt", "jax", "jax checkpoint", "gimli RetainGraphs", "gimli Budget")
Run = Callable[[], object]


def functional(work: Workload) -> torch.nn.Module:
    module = torch.nn.Module()
    for k, v in work.theta_0.items():
        module.register_parameter(k, torch.nn.Parameter(v.clone()))
    return module


def by_higher(work: Workload) -> Run:
    import higher

    module = functional(work)
    log_l2 = {k: v.clone().requires_grad_() for k, v in work.log_l2.items()}
    lr = {k: v.clone().requires_grad_() for k, v in work.lr.items()}
    groups = [{"params": [p], "lr": 1e-3} for p in module.parameters()]
    inner = torch.optim.Adam(groups)

    def run() -> object:
        override = {"lr": list(lr.values())}
        stepper = higher.optim.get_diff_optim(inner, list(module.parameters()), override=override)
        theta = list(module.parameters())
        for j in range(work.steps):
            loss = train_loss(dict(zip(work.theta_0, theta, strict=True)), log_l2, work.batch(j))
            theta = list(stepper.step(loss, params=theta))
        L = val_loss(dict(zip(work.theta_0, theta, strict=True)), log_l2, work.val)
        return torch.autograd.grad(L, [*lr.values(), *log_l2.values()])

    return run


def by_torchopt(work: Workload) -> Run:
    """Its optimizers take one number as the learning rate, so that L2 alone is learned."""
    import torchopt

    log_l2 = {k: v.clone().requires_grad_() for k, v in work.log_l2.items()}
    rule = torchopt.adam(lr=1e-3)

    def run() -> object:
        theta = {k: v.clone().requires_grad_() for k, v in work.theta_0.items()}
        state = rule.init(theta)
        for j in range(work.steps):
            loss = train_loss(theta, log_l2, work.batch(j))
            G = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
            updates, state = rule.update(G, state, inplace=False)
            theta = torchopt.apply_updates(theta, updates, inplace=False)
        return torch.autograd.grad(val_loss(theta, log_l2, work.val), list(log_l2.values()))

    return run


def by_jax(work: Workload, checkpoint: bool) -> Run:
    import jax
    import jax.numpy as jnp

    def arrays(tree: Any) -> Any:
        return jax.tree.map(lambda t: jnp.asarray(t.numpy()), tree)

    theta_0, lr, log_l2, val = arrays(work.theta_0), arrays(work.lr), arrays(work.log_l2), arrays(work.val)
    size = min(len(work.pool[0]), 4096) // 128
    x, y = (jnp.asarray(t.numpy())[: size * 128].reshape(size, 128, *t.shape[1:]) for t in work.pool)

    def cross_entropy(theta: Any, batch: Any) -> Any:
        h = batch[0]
        for i in range(3):
            h = h @ theta[f"w{i}"].T + theta[f"b{i}"]
            h = jax.nn.relu(h) if i < 2 else h
        return -jnp.take_along_axis(jax.nn.log_softmax(h), batch[1][:, None], 1).mean()

    def objective(lr: Any, log_l2: Any) -> Any:
        def inner(theta: Any, j: Any) -> Any:
            penalty = sum(jnp.exp(log_l2[k]) * (v**2).sum() for k, v in theta.items())
            return cross_entropy(theta, (x[j % size], y[j % size])) + penalty

        def step(carry: Any, j: Any) -> Any:
            theta, m, v = carry
            G = jax.grad(inner)(theta, j)
            m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, G)
            v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g * g, v, G)
            c1, c2 = 1 - 0.9 ** (j + 1), 1 - 0.999 ** (j + 1)
            update = jax.tree.map(lambda r, a, b: r / c1 * a / (jnp.sqrt(b / c2 + 1e-16) + 1e-8), lr, m, v)
            return (jax.tree.map(jnp.subtract, theta, update), m, v), None

        zeros = jax.tree.map(jnp.zeros_like, theta_0)
        body = jax.checkpoint(step) if checkpoint else step
        (theta, _, _), _ = jax.lax.scan(body, (theta_0, zeros, zeros), jnp.arange(work.steps))
        return cross_entropy(theta, val)

    gradient = jax.jit(jax.grad(objective, argnums=(0, 1)))
    return lambda: jax.block_until_ready(gradient(lr, log_l2))


def runner(name: str, work: Workload, limit: int) -> Run:
    if name == "autograd":
        return work.autograd
    if name == "higher":
        return by_higher(work)
    if name == "torchopt":
        return by_torchopt(work)
    if name.startswith("jax"):
        return by_jax(work, name.endswith("checkpoint"))
    memory: Any = gimli.memory.RetainGraphs() if name.endswith("Graphs") else gimli.memory.Budget(limit)
    return lambda: work.engine(memory)


def one(name: str, steps: int, data: Path, limit: int) -> int:
    """Bytes at the highest, in a process of its own."""
    runner(name, Workload(2, data), limit)()  # what libraries load and allocate once
    gc.collect()
    return peak_above_base(lambda: runner(name, Workload(steps, data), limit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=8, help="GiB")
    parser.add_argument("--at", type=int, nargs=2, default=(5, 15), metavar="J")
    parser.add_argument("--confirm", action="store_true", help="run each at 95 %% of its largest J")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--one", choices=PEERS, help="print only this one's peak in bytes")
    parser.add_argument("--steps", type=int, default=5)
    history.add_history(parser)
    given = parser.parse_args()
    limit = int(given.limit * 2**30)
    if given.one:
        print(one(given.one, given.steps, given.data, limit))
        return

    def peak(name: str, steps: int) -> int:
        options = ("--one", name, "--steps", str(steps), "--data", str(given.data), "--limit", str(given.limit))
        return int(in_fresh_process("tests.benchmarks.budget_peers", *options).splitlines()[-1])

    with history.noted("budget_peers", given) as run:
        table(given, limit, peak, run)


def table(given: argparse.Namespace, limit: int, peak: Callable[[str, int], int], run: history.Run) -> None:
    """A row for every library."""
    print(f"{'':20}{'MiB a step':>11}{'MiB at J = 0':>14}{f'largest J in {given.limit:g} GiB':>24}")
    for name in given.only:
        package = name.split()[0]
        if package in ("higher", "torchopt", "jax") and find_spec(package) is None:
            print(f"{name:20}not installed: pip install {package}")
            continue
        if name == "gimli Budget":
            print(
                f"{name:20}{'any: Checkpoint(1) takes the same at every J; python -m tests.benchmarks.budget --long'}"
            )
            continue
        low, high = (peak(name, J) for J in given.at)
        slope = (high - low) / (given.at[1] - given.at[0])
        largest = int((limit - low) / slope + given.at[0])
        print(f"{name:20}{slope / MIB:11.1f}{(low - slope * given.at[0]) / MIB:14.0f}{largest:>24}", flush=True)
        run.note(f"{name}/a step", slope, "bytes")
        run.note(f"{name}/at J = 0", low - slope * given.at[0], "bytes")
        if given.confirm:
            J = int(0.95 * largest)
            print(f"{'':20}confirmed: J = {J} took {peak(name, J) / 2**30:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
