"""A learned optimizer trained on one small network, and Adam tuned with as many inner steps: what the demo compares.

The learned rule is trained in windows: an inner run of `episode` steps is cut into pieces of `WINDOW`, each of which
goes on from where the one before it ended (theta and the rule's state are carried over) and gives one meta-gradient,
exact within the window, of the mean loss on the batch that follows each step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gimli_core.demo.data import Labelled
from gimli_core.errors import NotFiniteError
from gimli_core.evaluation.adapt import adapt
from gimli_core.learned import CoordinatewiseLSTM, MetaLSTM, MLPRule
from gimli_core.notation import Tensors
from gimli_core.optimizers import Adam, Optimizer
from gimli_core.problem import Problem
from gimli_core.unroll import unroll

__all__ = ["ARCHITECTURES", "RULES", "WINDOW", "Architecture", "Learned", "curve", "learn", "tuned_adam"]

BATCH, WINDOW = 64, 20
META_RATE, CLIP = 3e-3, 1.0
RATES = (1e-4, 1.0)  # between which Adam's learning rate is looked for
RULES: dict[str, Callable[[], Any]] = {"lstm": CoordinatewiseLSTM, "mlp": MLPRule, "meta-lstm": MetaLSTM}
PURPOSES = ("learn", "tune", "judge")


class Architecture(NamedTuple):
    """A network between the rows' features and the classes."""

    name: str
    hidden: tuple[int, ...]
    activation: Callable[[Tensor], Tensor]

    def start(self, features: int, classes: int, generator: torch.Generator) -> Tensors:
        """theta_0: weights uniform within 1/√fan_in, no biases."""
        theta: Tensors = {}
        for layer, (n, m) in enumerate(itertools.pairwise((features, *self.hidden, classes))):
            theta[f"w{layer}"] = (2 * torch.rand(m, n, generator=generator) - 1) * n**-0.5
            theta[f"b{layer}"] = torch.zeros(m)
        return theta

    def loss(self, theta: Tensors, phi: Tensors, batch: Labelled) -> Tensor:
        """Mean cross entropy."""
        h = batch.x
        for layer in range(len(self.hidden) + 1):
            h = F.linear(h if layer == 0 else self.activation(h), theta[f"w{layer}"], theta[f"b{layer}"])
        return F.cross_entropy(h, batch.y)


# The first is learned on; the learned rule meets the others when it is judged.
ARCHITECTURES = (
    Architecture("one hidden layer of 20, sigmoid", (20,), torch.sigmoid),
    Architecture("two hidden layers of 20, sigmoid", (20, 20), torch.sigmoid),
    Architecture("one hidden layer of 20, relu", (20,), torch.relu),
)


class Learned(NamedTuple):
    """After one window: its mean loss, the weights of the rule, inner steps taken so far."""

    loss: float
    net: Tensors
    steps: int


class Run(NamedTuple):
    """One inner run: where it starts, and an endless stream of batches."""

    theta_0: Tensors
    batches: Iterator[Labelled]


def begun(architecture: Architecture, rows: Labelled, classes: int, purpose: str, number: int, seed: int) -> Run:
    """The run of that number, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed((seed * len(PURPOSES) + PURPOSES.index(purpose)) << 20 | number)
    theta_0 = architecture.start(rows.x.shape[1], classes, generator)

    def batches() -> Iterator[Labelled]:
        while True:
            i = torch.randint(len(rows.y), (BATCH,), generator=generator)
            yield Labelled(rows.x[i], rows.y[i])

    return Run(theta_0, batches())


def learn(rule: Any, rows: Labelled, classes: int, windows: int, episode: int, seed: int) -> Iterator[Learned]:
    """After each window, what was learned. A run that is no longer finite is begun anew."""
    net = {k: v.requires_grad_() for k, v in rule.parameters(seed).items()}
    meta_optimizer = torch.optim.Adam(net.values(), lr=META_RATE)
    problem = Problem(ARCHITECTURES[0].loss, ARCHITECTURES[0].loss, rule)
    numbers = itertools.count()
    position, state = episode, None
    for window in range(windows):
        if position >= episode:
            theta, batches = begun(ARCHITECTURES[0], rows, classes, "learn", next(numbers), seed)
            position, state = 0, None
        taken = list(itertools.islice(batches, WINDOW + 1))
        try:
            loss, ended = unroll(
                problem,
                theta,
                taken[:WINDOW],
                taken.__getitem__,
                phi_opt={"net": net},
                state_0=state,
                val_weights=[1 / WINDOW] * WINDOW,
                with_trajectory=True,
                compile=False,
            )
            meta_optimizer.zero_grad()
            loss.backward()
        except NotFiniteError:
            position = episode
            continue
        torch.nn.utils.clip_grad_norm_(net.values(), CLIP)
        meta_optimizer.step()
        theta, state, position = ended.theta_J, ended.state_J, position + WINDOW
        yield Learned(loss.item(), {k: v.detach().clone() for k, v in net.items()}, (window + 1) * WINDOW)


def tuned_adam(rows: Labelled, classes: int, steps: int, episode: int, seed: int) -> tuple[Optimizer, list[float]]:
    """(Adam with the best of as many learning rates as runs of `episode` steps fit into `steps`, these rates)."""
    low, high = (math.log10(rate) for rate in RATES)
    rates: list[float] = torch.logspace(low, high, max(2, steps // episode)).tolist()

    def mean_loss(number: int, rate: float) -> float:
        losses = curve(Adam(lr=rate), ARCHITECTURES[0], rows, classes, episode, "tune", [number], seed)
        mean = losses.mean().item()
        return mean if math.isfinite(mean) else math.inf

    best = min(enumerate(rates), key=lambda one: mean_loss(*one))[1]
    return Adam(lr=best), rates


def curve(
    rule: Optimizer,
    architecture: Architecture,
    rows: Labelled,
    classes: int,
    steps: int,
    purpose: str,
    numbers: Sequence[int],
    seed: int,
) -> Tensor:
    """[runs, steps], ℓ_j(theta_j): the loss of each step's batch before the step is taken; nan if a run breaks."""
    losses = []
    for number in numbers:
        run = begun(architecture, rows, classes, purpose, number, seed)
        batches = list(itertools.islice(run.batches, steps))
        try:
            losses.append(adapt(Problem(architecture.loss, architecture.loss, rule), run.theta_0, batches).train_losses)
        except NotFiniteError:
            losses.append(torch.full((steps,), float("nan")))
    return torch.stack(losses)
