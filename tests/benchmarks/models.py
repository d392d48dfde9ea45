"""Peak memory and time of the memory schedules on two more models, each run in its own process.

    python -m tests.benchmarks.models [--model transformer convnet] [--steps 20] [--budgets 3]

A transformer (2 layers, width 256, context 128, AdamW) and a small convolutional network (4 layers, SGD with momentum),
on random data, against autograd through a plain unroll; then budgets from the least up to all graphs.
Peaks are above what the process holds after a run of two steps, so that the libraries' code and buffers do not count;
times are those of a second run. What is compiled has been compiled before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import as_one_vector, prepare
from gimli_core.compiled.choice import chosen
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.memory.measure import measure
from gimli_core.memory.schedules.budget import estimate, least
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.runs.make_run import makers
from tests.benchmarks.budget import Measured, measured, schedule_named, timed, verdict
from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import MIB, in_fresh_process

COMPILED = ", compiled"
FIXED = ("autograd", "RetainGraphs()", "StoreStates()", "Checkpoint(5)", f"Checkpoint(5){COMPILED}", "Checkpoint(1)")
TOKENS, CONTEXT, WIDTH, HEADS, LAYERS = 64, 128, 256, 4, 2


class Block(nn.Module):
    """Causal attention and a feed-forward part, each after a norm; attention in plain products, which derive twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, W = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, HEADS, W // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (W // HEADS) ** 0.5
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, W))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    def __init__(self, width: int, tokens: int = TOKENS, context: int = CONTEXT) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def convnet(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Conv2d(3 if i == 0 else width, width, 3, stride=2, padding=1), nn.Softplus()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 10))


class Work:
    """One meta-gradient of J steps: learned learning rates, one a tensor."""

    def __init__(self, model: str, steps: int) -> None:
        torch.manual_seed(0)
        self.steps, self.adam = steps, model == "transformer"
        if self.adam:
            self.net: nn.Module = Transformer(WIDTH)
            x = torch.randint(TOKENS, (4, 8, 1 + CONTEXT))
            self.pool = [(b[:, :-1], b[:, 1:].reshape(-1)) for b in x]
        else:
            self.net = convnet(64)
            self.pool = [(torch.randn(64, 3, 32, 32), torch.randint(10, (64,))) for _ in range(4)]
        self.theta_0 = {k: v.detach() for k, v in self.net.named_parameters()}
        rule = gimli.optimizers.AdamW() if self.adam else gimli.optimizers.SGD(momentum=0.9)
        self.lr = {k: torch.tensor(1e-3) for k in self.theta_0}
        self.problem = gimli.Problem(self.loss, self.loss, rule)

    def loss(self, theta: dict[str, Tensor], phi: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(self.net, theta, (batch[0],))
        return F.cross_entropy(out.reshape(-1, out.shape[-1]), batch[1])

    def arguments(self) -> dict[str, Any]:
        batches: Callable[[int], Any] = lambda j: self.pool[j % 3]  # noqa: E731
        return {
            "problem": self.problem,
            "theta_0": self.theta_0,
            "train_batches": batches,
            "val_batch": self.pool[3],
            "steps": self.steps,
            "phi_opt": {"lr": self.lr},
        }

    def engine(self, memory: gimli.memory.Schedule, compile: bool = False) -> dict[str, Tensor]:
        found: dict[str, Tensor] = gimli.meta_gradient(**self.arguments(), memory=memory, compile=compile).A_opt["lr"]
        return found

    def autograd(self) -> dict[str, Tensor]:
        lr = {k: v.clone().requires_grad_() for k, v in self.lr.items()}
        theta = {k: v.clone().requires_grad_() for k, v in self.theta_0.items()}
        m = {k: torch.zeros_like(v) for k, v in theta.items()}
        v = dict(m)
        for j in range(self.steps):
            loss = self.loss(theta, None, self.pool[j % 3])
            G = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
            if self.adam:
                m = {k: 0.9 * m[k] + 0.1 * g for k, g in G.items()}
                v = {k: 0.999 * v[k] + 0.001 * g * g for k, g in G.items()}
                c1, c2 = 1 - 0.9 ** (j + 1), 1 - 0.999 ** (j + 1)
                theta = {
                    k: x * (1 - 0.01 * lr[k]) - lr[k] / c1 * m[k] / ((v[k] / c2).sqrt() + 1e-8)
                    for k, x in theta.items()
                }
            else:
                m = {k: 0.9 * m[k] + g for k, g in G.items()}
                theta = {k: x - lr[k] * m[k] for k, x in theta.items()}
        loss = self.loss(theta, None, self.pool[3])
        return dict(zip(lr, torch.autograd.grad(loss, list(lr.values())), strict=True))


def one(model: str, name: str, steps: int) -> Measured:
    """One line of the table; call it in a process of its own."""
    short = Work(model, 2)
    short.engine(gimli.memory.Budget("8GiB"))
    short.autograd()
    work = Work(model, steps)
    if name == "autograd":
        peak, seconds, cpu = timed(work.autograd)
        return Measured(peak, None, seconds, cpu, "")
    schedule, compile = schedule_named(name.removesuffix(COMPILED)), name.endswith(COMPILED)
    inputs = as_one_vector(prepare(Call(**work.arguments())))
    compiled = chosen(inputs, compile, whole=False)
    assert isinstance(compiled, CompiledSteps) == compile
    return measured(schedule, inputs, lambda: work.engine(schedule, compile=compile), compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=("transformer", "convnet"), default=["transformer", "convnet"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--budgets", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=FIXED, help="which of the fixed schedules to run")
    parser.add_argument("--threads", type=int, help="processor threads; 1 gives quiet times on a shared machine")
    parser.add_argument("--one", help="only this schedule, as JSON")
    add_history(parser)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(one(given.model[0], given.one, given.steps)))
        return
    heads = {"schedule": -24, "MiB": 7, "ratio": 7, "pred/meas": 11, "s": 7, "s ratio": 9, "cpu ratio": 11}
    print(f"{'model':12}" + "".join(f"{h:{'<' if w < 0 else '>'}{abs(w)}}" for h, w in heads.items()))
    with noted("models", given) as run:
        for model in given.model:
            table(model, given, run)


def table(model: str, given: argparse.Namespace, run: Run) -> None:
    """One model's rows."""
    J = given.steps
    costs = measure(prepare(Call(**Work(model, J).arguments())), makers(EagerSteps())[0])
    smallest, largest = 0.9 * least(J, costs), 1.05 * estimate(gimli.memory.Checkpoint(1, graphs=J), J, costs)[0]
    sizes = [int(smallest * (largest / smallest) ** (i / max(given.budgets - 1, 1))) for i in range(given.budgets)]
    reference: Measured | None = None
    budgets = {f"Budget({size})": f"budget {i + 1} of {len(sizes)}" for i, size in enumerate(sizes)}
    for name in (*given.only, *budgets):
        threads = ("--threads", str(given.threads)) if given.threads else ()
        options = ("--model", model, "--steps", str(J), "--one", name, *threads)
        found = Measured(*json.loads(in_fresh_process("tests.benchmarks.models", *options)))
        reference = reference or found
        found.note(run, f"{model}/{budgets.get(name, name)}")
        told = "" if found.predicted is None else f"{found.predicted / found.peak:.2f}"
        end = f"\n{verdict(found)}" if found.size else ""
        print(
            f"{model:12}{name:24}{found.peak / MIB:7.0f}{found.peak / reference.peak:7.3f}{told:>11}"
            f"{found.seconds:7.1f}{found.seconds / reference.seconds:9.2f}{found.cpu / reference.cpu:11.2f}{end}",
            flush=True,
        )


if __name__ == "__main__":
    main()
