"""Whole outer loops as users write them: a step of each, meta-optimizer included, engine against engine.

    python -m tests.benchmarks.outer_loops [--only LOOP …] [--engines ENGINE …] [--steps 10] [--threads 1]

readme    the README's: a learned rate and penalty, MLP 30-16-2 on real data, 30 steps of Adam, through `unroll`
maml      a learned start: sinusoids, MLP 1-40-40-1, 25 tasks, 5 steps of SGD
warm      a rate learned online: windows of 10 steps of Adam, each from the state in which the last one ended
turns     two problems and two lengths of the inner loop, which take turns: 5 and 10 steps of SGD

compiled  gimli.unroll with compile=True            higher    as its users write it
eager     with compile=False                        autograd  back-propagation through a plain unroll
default   with compile="auto"

All engines take the same outer steps from the same numbers, in turn (A B A B …) in one process, and must come to the
same losses. Times are medians over the outer steps, ratios over the pairs; beside the time on the clock stands that of
the processors, which other programs on the machine disturb less. What the first step takes besides is told apart.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

import gimli_core as gimli
from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import median_ratio
from tests.benchmarks.speed import rules
from tests.benchmarks.speed.workloads import sinusoid_net, sinusoids

COMPILE = {"compiled": True, "eager": False, "default": "auto"}
ENGINES = (*COMPILE, "higher", "autograd")
Step = Callable[[], float]  # one outer step; the validation loss before it


def descended(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """The loss, after a step of the meta-optimizer down its gradient."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def plainly_unrolled(
    rule: str,
    theta: dict[str, Tensor],
    s: Any,
    j: int,
    steps: int,
    loss: Callable[[dict[str, Tensor]], Tensor],
    lr: Any,
) -> tuple[dict[str, Tensor], Any]:
    """(theta, s) after some steps from step j on, with their graph."""
    s = rules.start(rule, theta, torch.zeros_like) if s is None else s
    for i in range(j, j + steps):
        G = torch.autograd.grad(loss(theta), list(theta.values()), create_graph=True)
        theta, s = rules.step(rule, theta, s, dict(zip(theta, G, strict=True)), lr, rules.corrections(i), torch.sqrt)
    return theta, s


def readme(engine: str) -> Step:
    x, y = (torch.tensor(a) for a in load_breast_cancer(return_X_y=True))
    x = ((x - x[:300].mean(0)) / x[:300].std(0)).float()
    train, val, steps = (x[:300], y[:300]), (x[300:], y[300:]), 30
    net = nn.Sequential(nn.Linear(30, 16), nn.SiLU(), nn.Linear(16, 2))
    theta_0 = dict(net.named_parameters())
    log_lr, log_l2 = (torch.tensor(-7.0, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([log_lr, log_l2], lr=0.2)

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return cross_entropy(functional_call(net, theta, (batch[0],)), batch[1])

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return val_loss(theta, phi, batch) + phi["log_l2"].exp() * sum(w.square().sum() for w in theta.values())

    problem = gimli.Problem(train_loss, val_loss, gimli.optimizers.Adam())

    def ours() -> float:
        inner = {"steps": steps, "phi_opt": {"lr": log_lr.exp()}, "phi_loss": {"log_l2": log_l2}}
        return descended(
            gimli.unroll(problem, theta_0, lambda j: train, val, **inner, compile=COMPILE[engine]), optimizer
        )

    def autograd() -> float:
        theta, _ = plainly_unrolled(
            "adam", theta_0, None, 0, steps, lambda theta: train_loss(theta, {"log_l2": log_l2}, train), log_lr.exp()
        )
        return descended(val_loss(theta, {}, val), optimizer)

    def higher() -> float:
        import higher as library

        inner = torch.optim.Adam(net.parameters(), lr=1e-3)
        with library.innerloop_ctx(net, inner, override={"lr": [log_lr.exp()]}) as (fast, differentiable):
            for j in range(steps):
                loss = cross_entropy(fast(train[0]), train[1])
                loss = loss + log_l2.exp() * sum(w.square().sum() for w in fast.parameters())
                # Its Adam adds eps before the correction, as torch.optim once did; this eps gives today's formula.
                differentiable.step(loss, override={"eps": [rules.EPS * rules.corrections(j)[1] ** 0.5]})
            return descended(cross_entropy(fast(val[0]), val[1]), optimizer)

    return {"higher": higher, "autograd": autograd}.get(engine, ours)


def sinusoid_loss(net: nn.Module) -> Callable[..., Tensor]:
    def loss(theta: dict[str, Tensor], phi: Any, batch: Any) -> Tensor:
        return mse_loss(functional_call(net, theta, (batch[0],)), batch[1])

    return loss


def maml(engine: str) -> Step:
    T, steps, lr = 25, 5, 0.01
    net = sinusoid_net(40, nn.ReLU)
    theta_0, loss = dict(net.named_parameters()), sinusoid_loss(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=lr), modules=[net])
    drawn = torch.Generator().manual_seed(1)

    def batches() -> tuple[Any, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=drawn)))
            x, y = sinusoids(T, 20)
        return (x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:])

    def ours() -> float:
        train, val = batches()
        value = gimli.unroll(problem, theta_0, [train] * steps, val, tasks=T, compile=COMPILE[engine])
        return descended(value, optimizer)

    of_each = torch.vmap(loss, (0, None, 0))

    def autograd() -> float:
        train, val = batches()
        theta = {k: v.expand(T, *v.shape) for k, v in theta_0.items()}
        theta, _ = plainly_unrolled("sgd", theta, None, 0, steps, lambda theta: of_each(theta, None, train).sum(), lr)
        return descended(of_each(theta, None, val).mean(), optimizer)

    def higher() -> float:
        import higher as library

        train, val = batches()
        total = torch.zeros(())
        for i in range(T):
            inner = torch.optim.SGD(net.parameters(), lr=lr)
            with library.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, differentiable):
                for _ in range(steps):
                    differentiable.step(mse_loss(fast(train[0][i]), train[1][i]))
                total = total + mse_loss(fast(val[0][i]), val[1][i]) / T
        return descended(total, optimizer)

    return {"higher": higher, "autograd": autograd}.get(engine, ours)


def warm(engine: str) -> Step:
    steps, net = 10, sinusoid_net(40, nn.Tanh)
    loss = sinusoid_loss(net)
    x, y = sinusoids(1, 40)
    train, val = (x[0, :20], y[0, :20]), (x[0, 20:], y[0, 20:])
    log_lr = torch.tensor(-5.0, requires_grad=True)
    optimizer = torch.optim.Adam([log_lr], lr=0.02)
    problem = gimli.Problem(loss, loss, gimli.optimizers.Adam(), modules=[net])
    now: dict[str, Any] = {"theta": {k: v.detach() for k, v in net.named_parameters()}, "s": None, "j": 0}

    def ours() -> float:
        value, end = gimli.unroll(
            problem,
            now["theta"],
            [train] * steps,
            val,
            phi_opt={"lr": log_lr.exp()},
            state_0=now["s"],
            with_trajectory=True,
            compile=COMPILE[engine],
        )
        now.update(theta=end.theta_J, s=end.state_J)
        return descended(value, optimizer)

    def autograd() -> float:
        theta = {k: v.requires_grad_() for k, v in now["theta"].items()}
        theta, s = plainly_unrolled(
            "adam", theta, now["s"], now["j"], steps, lambda theta: loss(theta, None, train), log_lr.exp()
        )
        found = descended(loss(theta, None, val), optimizer)
        held = tuple({k: v.detach() for k, v in part.items()} for part in s)
        now.update(theta={k: v.detach() for k, v in theta.items()}, s=held, j=now["j"] + steps)
        return found

    def higher() -> float:
        raise LookupError("it has no way to go on from a state")

    return {"higher": higher, "autograd": autograd}.get(engine, ours)


def turns(engine: str) -> Step:
    nets = [sinusoid_net(width, nn.Tanh) for width in (20, 40)]
    losses = [sinusoid_loss(net) for net in nets]
    log_lr = torch.tensor(-5.0, requires_grad=True)
    optimizer = torch.optim.Adam([log_lr], lr=0.02)
    problems = [
        gimli.Problem(loss, loss, gimli.optimizers.SGD(), modules=[net]) for loss, net in zip(losses, nets, strict=True)
    ]
    x, y = sinusoids(1, 40)
    train, val = (x[0, :20], y[0, :20]), (x[0, 20:], y[0, 20:])
    plan = [(i, steps) for i in range(2) for steps in (5, 10)]

    def ours(i: int, steps: int) -> Tensor:
        theta_0 = {k: v.detach() for k, v in nets[i].named_parameters()}
        rate = {"lr": log_lr.exp()}
        found: Tensor = gimli.unroll(problems[i], theta_0, [train] * steps, val, phi_opt=rate, compile=COMPILE[engine])
        return found

    def autograd(i: int, steps: int) -> Tensor:
        theta = {k: v.detach().requires_grad_() for k, v in nets[i].named_parameters()}
        theta, _ = plainly_unrolled(
            "sgd", theta, None, 0, steps, lambda theta: losses[i](theta, None, train), log_lr.exp()
        )
        return losses[i](theta, None, val)

    def higher(i: int, steps: int) -> Tensor:
        import higher as library

        inner = torch.optim.SGD(nets[i].parameters(), lr=1e-3)
        with library.innerloop_ctx(nets[i], inner, override={"lr": [log_lr.exp()]}) as (fast, differentiable):
            for _ in range(steps):
                differentiable.step(mse_loss(fast(train[0]), train[1]))
            return mse_loss(fast(val[0]), val[1])

    one = {"higher": higher, "autograd": autograd}.get(engine, ours)
    return lambda: sum(descended(one(i, steps), optimizer) for i, steps in plan)


LOOPS: dict[str, Callable[[str], Step]] = {f.__name__: f for f in (readme, maml, warm, turns)}


def timed(step: Step) -> tuple[float, float, float]:
    """(the loss, seconds, seconds of all processors)."""
    start, processors = time.perf_counter(), time.process_time()
    found = step()
    return found, time.perf_counter() - start, time.process_time() - processors


def compare(name: str, engines: list[str], steps: int, history: Run) -> None:
    """Run the engines' outer steps in turn, print their rows and note their figures."""
    loops: dict[str, Step] = {}
    for engine in engines:
        torch.manual_seed(0)
        loops[engine] = LOOPS[name](engine)
    losses: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    processors: dict[str, list[float]] = {}
    for _ in range(steps + 1):
        for engine, step in list(loops.items()):
            try:
                found, wall, cpu = timed(step)
            except LookupError as reason:
                print(f"  {engine}: {reason}")
                del loops[engine]
                continue
            for kept, value in ((losses, found), (seconds, wall), (processors, cpu)):
                kept.setdefault(engine, []).append(value)
    reference = losses["autograd" if "autograd" in losses else next(iter(losses))]
    others = [e for e in ("higher", "autograd") if e in losses]
    heads = "".join(f"{e + ' /':>12}" for e in others)
    print(f"{'':12}{'median ms':>11}{'cpu ms':>10}{heads}{'first s':>10}{'off':>10}")
    for engine in losses:
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses[engine], reference, strict=True))
        ratios = "".join(f"{median_ratio(processors[o][1:], processors[engine][1:]):12.2f}" for o in others)
        times = [1e3 * statistics.median(kept[engine][1:]) for kept in (seconds, processors)]
        print(f"{engine:12}{times[0]:11.2f}{times[1]:10.2f}{ratios}{seconds[engine][0]:10.1f}{apart:10.1e}", flush=True)
        history.note(f"{name}/{engine}/time", seconds[engine][1:], "s")
        history.note(f"{name}/{engine}/processor time", processors[engine][1:], "s")
        history.note(f"{name}/{engine}/first step", seconds[engine][0], "s")
        history.note(f"{name}/{engine}/losses off", apart, "relative error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LOOPS, default=list(LOOPS), metavar="LOOP")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--steps", type=int, default=10, help="outer steps that are timed")
    parser.add_argument("--threads", type=int, default=1)
    add_history(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.getLogger("gimli_core").setLevel("ERROR")
    warnings.simplefilter("ignore")
    with noted("outer_loops", given) as history:
        for name in given.only:
            print(f"\n{name}, {given.threads} threads; engine / this one, in processor time", flush=True)
            compare(name, given.engines, given.steps, history)


if __name__ == "__main__":
    main()
