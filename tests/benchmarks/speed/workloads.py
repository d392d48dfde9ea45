"""The workloads: what is unrolled, on which data, and which derivatives are asked for.

sinusoid     MAML: MLP 1-40-40-1, 25 tasks, 5 steps of SGD, 10 support and 10 query points a task
omniglot     MAML, 5-way 1-shot on real characters: 4 convolutions of 64, 8 tasks, 5 steps of SGD, 75 queries a task
mnist        MLP 784-512-512-10 on real digits, batch 128, 50 steps of Adam, a learning rate and an L2 per tensor
transformer  2 layers, width 256, context 128, on real text, 20 steps of AdamW, a learning rate per tensor
tiny         one sinusoid, no tasks, 50 steps of Adam: the learning rate and the initialisation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tests.benchmarks import mnist_mlp
from tests.benchmarks.models import CONTEXT, WIDTH, Transformer

DATA = Path(__file__).parents[4] / "shared" / "data"
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Workload:
    """One meta-gradient to compute.

    Step j trains on `train` at j modulo its first dimension; with tasks, the dimension after it (in `val` and
    in losses the first) is the task's. `meta` holds what is differentiated, by name: "theta_0", "lr", "phi_loss".
    """

    name: str
    net: nn.Module  # its parameters are theta_0
    architecture: str  # the name of the same network in other frameworks
    objective: str  # "mse" or "cross_entropy"
    rule: str  # "sgd", "adam" or "adamw", each with torch.optim's defaults
    lr: Any  # a number, a tensor, or one a parameter by name
    steps: int
    tasks: int | None
    train: Batch  # x [K, (T,) n, …], y [K, (T,) n, …]
    val: Batch  # x [(T,) n, …], y [(T,) n, …]
    wanted: tuple[str, ...]
    phi_loss: dict[str, Tensor] = field(default_factory=dict)  # log_l2 a parameter, where there is any

    @property
    def theta_0(self) -> dict[str, Tensor]:
        return {k: v.detach() for k, v in self.net.named_parameters()}

    @property
    def meta(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in self.wanted}

    def batch(self, j: int) -> Batch:
        x, y = self.train
        return x[j % len(x)], y[j % len(y)]

    def val_loss(self, theta: dict[str, Tensor], phi_loss: dict[str, Tensor], batch: Batch) -> Tensor:
        return OBJECTIVES[self.objective](functional_call(self.net, theta, (batch[0],)), batch[1])

    def train_loss(self, theta: dict[str, Tensor], phi_loss: dict[str, Tensor], batch: Batch) -> Tensor:
        loss = self.val_loss(theta, phi_loss, batch)
        return loss + mnist_mlp.l2(theta, phi_loss) if self.phi_loss else loss

    def to(self, *where: Any) -> Workload:
        """The same on another device or in another dtype; labels stay whole numbers."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: moved(v) for k, v in value.items()}
            if isinstance(value, tuple):
                return tuple(moved(v) for v in value)
            if not isinstance(value, Tensor):
                return value
            return value.to(*(w for w in where if value.is_floating_point() or not isinstance(w, torch.dtype)))

        changed = {k: moved(getattr(self, k)) for k in ("lr", "train", "val", "phi_loss")}
        return replace(self, net=self.net.to(*where), **changed)


def cross_entropy(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), target.reshape(-1))


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cross_entropy": cross_entropy}


def sinusoid_net(width: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(1, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 1))


def sinusoids(tasks: int, points: int) -> Batch:
    """x and y [tasks, points, 1] of a·sin(x − p): a in [0.1, 5], p in [0, π], x in [−5, 5]."""
    a, p = 0.1 + 4.9 * torch.rand(tasks, 1, 1), torch.pi * torch.rand(tasks, 1, 1)
    x = 10 * torch.rand(tasks, points, 1) - 5
    return x, a * torch.sin(x - p)


def sinusoid(data: Path, steps: int = 5, tasks: int = 25, width: int = 40) -> Workload:
    """The regression of the MAML paper (Finn et al. 2017)."""
    x, y = sinusoids(tasks, 20)
    return Workload(
        "sinusoid",
        sinusoid_net(width, nn.ReLU),
        "mlp_relu",
        "mse",
        "sgd",
        0.01,
        steps,
        tasks,
        (x[None, :, :10], y[None, :, :10]),
        (x[:, 10:], y[:, 10:]),
        ("theta_0",),
    )


def tiny(data: Path, steps: int = 50, width: int = 40) -> Workload:
    """One small problem alone. Its units are tanh: a dead ReLU has G = 0, where autograd through Adam gives nan."""
    x, y = sinusoids(1, 20)
    return Workload(
        "tiny",
        sinusoid_net(width, nn.Tanh),
        "mlp_tanh",
        "mse",
        "adam",
        torch.tensor(1e-2),
        steps,
        None,
        (x[:, :10], y[:, :10]),
        (x[0, 10:], y[0, 10:]),
        ("theta_0", "lr"),
    )


class Mnist(nn.Module):
    """The network of `mnist_mlp` as a module."""

    def __init__(self, theta_0: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = list(theta_0)
        for k, v in theta_0.items():
            self.register_parameter(k, nn.Parameter(v.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return mnist_mlp.mlp({k: getattr(self, k) for k in self.names}, x)


def mnist(data: Path, steps: int = 50, width: int = 512) -> Workload:
    held = mnist_mlp.Workload(steps, data / "mnist.npz", sizes=(784, width, width, 10))
    x, y = zip(*(held.batch(j) for j in range(steps)), strict=True)
    return Workload(
        "mnist",
        Mnist(held.theta_0),
        "mlp_named",
        "cross_entropy",
        "adam",
        held.lr,
        steps,
        None,
        (torch.stack(x), torch.stack(y)),
        held.val,
        ("lr", "phi_loss"),
        held.log_l2,
    )


class MeanOverSpace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def omniglot_net(width: int, ways: int) -> nn.Module:
    """The MAML paper's network for Omniglot: convolutions of stride 2 in place of pooling, normalised by the batch.

    Four times a 3×3 convolution (no bias: the norm takes it away), batch normalisation with the batch's own statistics
    and none that run, ReLU; then the mean over space and a linear layer.
    """
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [
            nn.Conv2d(width if i else 1, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, MeanOverSpace(), nn.Linear(width, ways))


def omniglot(data: Path, steps: int = 5, tasks: int = 8, width: int = 64) -> Workload:
    """5-way 1-shot tasks from the training characters: 1 drawing a character to train on, 15 to be judged by."""
    ways, shots, queries = 5, 1, 15
    path = data / "omniglot28.npz"
    if not path.exists():
        raise SystemExit(
            f"{path}: not found. Give --data DIR with omniglot28.npz: images [32460, 28, 28], character, vinyals_split "
            "(the set is at github.com/brendenlake/omniglot)."
        )
    with np.load(path) as arrays:
        ink = torch.tensor(arrays["images"])
        character = torch.tensor(arrays["character"].astype(np.int64))
        training = torch.tensor(arrays["vinyals_split"] == 0).nonzero().flatten()
    x = torch.empty(tasks, ways, shots + queries, 1, 28, 28)
    for task in x:
        for drawings, c in zip(task, training[torch.randperm(len(training))[:ways]], strict=True):
            rows = (character == c).nonzero().flatten()
            rows = rows[torch.randperm(len(rows))[: shots + queries]]
            drawings.copy_(ink[rows, None].float() / 255)
    y = torch.arange(ways).view(1, ways, 1).expand(tasks, ways, shots + queries)

    def joined(values: Tensor) -> Tensor:
        return values.reshape(tasks, -1, *values.shape[3:])

    train = joined(x[:, :, :shots])[None], joined(y[:, :, :shots])[None]
    return Workload(
        "omniglot",
        omniglot_net(width, ways),
        "conv",
        "cross_entropy",
        "sgd",
        0.4,
        steps,
        tasks,
        train,
        (joined(x[:, :, shots:]), joined(y[:, :, shots:])),
        ("theta_0",),
    )


def letters(symbols: int) -> Tensor:
    """The text of Python's own `help()` topics in whole numbers: its commonest letters, and one number for others."""
    text = "\n".join(topics[name] for name in sorted(topics)).lower()
    places = {c: i for i, (c, _) in enumerate(Counter(text).most_common(symbols - 1))}
    return torch.tensor([places.get(c, symbols - 1) for c in text])


def transformer(data: Path, steps: int = 20, width: int = WIDTH, context: int = CONTEXT) -> Workload:
    """Next-character prediction, batches of 8 windows of `context` characters.

    Few symbols, and batches that have them all: one that is missing has G = 0, where autograd through Adam gives nan.
    """
    symbols, size = 24, 8
    text = letters(symbols)
    batches: list[Tensor] = []
    while len(batches) <= steps:
        drawn = text[torch.randint(len(text) - context, (size, 1)) + torch.arange(context + 1)]
        if len(drawn[:, :-1].unique()) == symbols:
            batches.append(drawn)
    windows = torch.stack(batches)
    x, y = windows[..., :-1], windows[..., 1:]
    net = Transformer(width, symbols, context)
    lr = {k: torch.tensor(1e-3) for k, _ in net.named_parameters()}
    return Workload(
        "transformer",
        net,
        "transformer",
        "cross_entropy",
        "adamw",
        lr,
        steps,
        None,
        (x[:-1], y[:-1]),
        (x[-1], y[-1]),
        ("lr",),
    )


BUILDERS: dict[str, Callable[..., Workload]] = {f.__name__: f for f in (sinusoid, omniglot, mnist, transformer, tiny)}


def build(name: str, data: Path = DATA, **sizes: int) -> Workload:
    """The workload of that name, in float32 on the CPU, always with the same numbers."""
    torch.manual_seed(0)
    return BUILDERS[name](data, **sizes)
