"""What the demo learns, and what it is compared with.

The outer loop moves log learning rates, logit betas and log L2 penalties down the meta-gradient
of the validation loss. Every outer step trains a new network from a new initialisation on new
batches, so that what is learned is good for training such networks, not for one of them. The
comparisons train in plain `torch.optim.Adam`: the learned numbers are of use without this library.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from gimli_core.demo.data import Labelled, Splits
from gimli_core.optimizers import Adam
from gimli_core.problem import Problem
from gimli_core.unroll import unroll

__all__ = ["Hyperparameters", "Score", "Training", "grid", "grid_rates", "learn", "score", "train"]

HIDDEN, BATCH = 32, 64
START_LR, ADAM_BETAS = 1e-3, (0.9, 0.999)  # Adam's defaults
START_L2 = 1e-4
META_LEARNING_RATE = 0.1  # of log learning rates, logit betas and log penalties
GRID_RUNS_A_RATE = 5
GRID_RATES = (1e-4, 1.0)
WORK_OF_A_META_GRADIENT = 3  # in training runs: 9F against 3F a step


class Hyperparameters(NamedTuple):
    """Adam's and the penalty's settings: a learning rate and an L2 penalty for each tensor, two betas for all."""

    lr: dict[str, Tensor]
    beta1: Tensor
    beta2: Tensor
    log_l2: dict[str, Tensor]

    @property
    def phi_opt(self) -> dict[str, Any]:
        return {"lr": self.lr, "beta1": self.beta1, "beta2": self.beta2}


class Score(NamedTuple):
    """Means over a split: the loss, without the penalty, and the share of rows classified correctly."""

    loss: float
    accuracy: float


PURPOSES = ("learn", "grid", "table", "verify")  # each draws its own random numbers


@dataclass(frozen=True)
class Training:
    """The inner problem: J steps of Adam on a two-layer network.

        ell_j(theta, phi_loss) = cross entropy(batch_j; theta) + Σ_k exp(log_l2_k) |theta_k|²
        L_val(theta)           = cross entropy(validation rows; theta)

    Args:
        splits: the data.
        steps: J.
        seed: from which `run` derives the initialisation and the batches of each run.
    """

    splits: Splits
    steps: int
    seed: int

    @cached_property
    def network(self) -> nn.Module:
        features = self.splits.train.x.shape[1]
        # SiLU, not ReLU: finite differences need a smooth loss.
        layers = {
            "hidden": nn.Linear(features, HIDDEN),
            "silu": nn.SiLU(),
            "output": nn.Linear(HIDDEN, self.splits.classes),
        }
        return nn.Sequential(OrderedDict(layers))

    @cached_property
    def problem(self) -> Problem:
        return Problem(self.train_loss, self.val_loss, Adam())

    def train_loss(self, theta: dict[str, Tensor], log_l2: dict[str, Tensor], batch: Labelled) -> Tensor:
        penalty = sum(log_l2[k].exp() * theta_k.square().sum() for k, theta_k in theta.items())
        return self.val_loss(theta, log_l2, batch) + penalty

    def val_loss(self, theta: dict[str, Tensor], log_l2: dict[str, Tensor], batch: Labelled) -> Tensor:
        return cross_entropy(functional_call(self.network, theta, (batch.x,)), batch.y)

    def run(self, purpose: str, number: int) -> tuple[dict[str, Tensor], list[Labelled]]:
        """theta_0 and the batches of one run, the same whenever they are asked for."""
        generator = torch.Generator().manual_seed((self.seed * len(PURPOSES) + PURPOSES.index(purpose)) << 20 | number)
        theta_0 = {}
        for name, parameter in self.network.named_parameters():
            fan_in = self.network.get_parameter(name.replace("bias", "weight")).shape[1]
            theta_0[name] = (2 * torch.rand(parameter.shape, generator=generator) - 1) / math.sqrt(fan_in)
        x, y = self.splits.train
        rows = torch.randint(len(y), (self.steps, BATCH), generator=generator)
        return theta_0, [Labelled(x[i], y[i]) for i in rows]

    def constant(self, lr: float, l2: float) -> Hyperparameters:
        """The same learning rate and penalty for every tensor, and Adam's default betas."""
        names = [name for name, _ in self.network.named_parameters()]
        beta1, beta2 = map(torch.tensor, ADAM_BETAS)
        return Hyperparameters(
            dict.fromkeys(names, torch.tensor(lr)), beta1, beta2, dict.fromkeys(names, torch.tensor(l2).log())
        )


def learn(training: Training, outer_steps: int) -> Iterator[tuple[float, Hyperparameters]]:
    """After each outer step, the validation loss that it met and the hyperparameters that it left."""
    start = training.constant(START_LR, START_L2)
    log_lr = {k: v.log().requires_grad_() for k, v in start.lr.items()}
    log_l2 = {k: v.clone().requires_grad_() for k, v in start.log_l2.items()}
    logit_1, logit_2 = start.beta1.logit().requires_grad_(), start.beta2.logit().requires_grad_()
    meta_optimizer = torch.optim.Adam([*log_lr.values(), *log_l2.values(), logit_1, logit_2], lr=META_LEARNING_RATE)

    def current() -> Hyperparameters:
        return Hyperparameters({k: v.exp() for k, v in log_lr.items()}, logit_1.sigmoid(), logit_2.sigmoid(), log_l2)

    for step in range(outer_steps):
        theta_0, batches = training.run("learn", step)
        loss = unroll(
            training.problem,
            theta_0,
            batches,
            training.splits.val,
            phi_opt=current().phi_opt,
            phi_loss=log_l2,
            compile=False,  # the same bits on a slow machine as on a fast one
        )
        meta_optimizer.zero_grad()
        loss.backward()
        meta_optimizer.step()
        with torch.no_grad():
            yield loss.item(), current()._replace(log_l2={k: v.clone() for k, v in log_l2.items()})


def train(training: Training, values: Hyperparameters, purpose: str, number: int) -> dict[str, Tensor]:
    """theta_J of one run in plain `torch.optim.Adam`."""
    theta, batches = training.run(purpose, number)
    groups = [{"params": [theta_k.requires_grad_()], "lr": values.lr[k].item()} for k, theta_k in theta.items()]
    optimizer = torch.optim.Adam(groups, betas=(values.beta1.item(), values.beta2.item()), fused=True)
    for batch in batches:
        optimizer.zero_grad()
        training.train_loss(theta, values.log_l2, batch).backward()
        optimizer.step()
    return {k: theta_k.detach() for k, theta_k in theta.items()}


def score(training: Training, theta: dict[str, Tensor], rows: Labelled) -> Score:
    """How well theta does on `rows`."""
    logits = functional_call(training.network, theta, (rows.x,))
    return Score(cross_entropy(logits, rows.y).item(), (logits.argmax(1) == rows.y).double().mean().item())


def grid_rates(outer_steps: int) -> Sequence[float]:
    """As many rates as cost, with their runs, what the outer loop costs; evenly spaced in the logarithm."""
    count = max(2, math.ceil(WORK_OF_A_META_GRADIENT * outer_steps / GRID_RUNS_A_RATE))
    low, high = map(math.log10, GRID_RATES)
    return torch.logspace(low, high, count).tolist()


def grid(training: Training, rates: Sequence[float]) -> Iterator[tuple[float, Hyperparameters]]:
    """For each fixed learning rate, one for all tensors and no penalty, its mean validation loss."""
    for rate in rates:
        values = training.constant(rate, l2=0.0)
        runs = [train(training, values, "grid", number) for number in range(GRID_RUNS_A_RATE)]
        yield sum(score(training, theta, training.splits.val).loss for theta in runs) / len(runs), values
