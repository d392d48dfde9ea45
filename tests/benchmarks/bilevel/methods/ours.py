"""gimli_core, eager: unrolled with every graph kept, and within a budget of an eighth of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import gimli_core as gimli
from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors, outer_loop


def by_engine(problem: Bilevel, memory: Any = None) -> Iterator[Reached]:
    inner = gimli.Problem(problem.train_loss, problem.val_loss, gimli.optimizers.SGD(lr=problem.lr))

    def hypergradient(phi: Tensors) -> tuple[Tensor, Tensors]:
        loss = gimli.unroll(
            inner, problem.start(phi), problem.batch, problem.val, steps=problem.steps, phi_loss=phi,
            memory=memory, compile=False,
        )  # fmt: skip
        return loss, dict(zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True))

    return outer_loop(problem, hypergradient)


def unrolled(problem: Bilevel) -> Iterator[Reached]:
    return by_engine(problem)


def budgeted(problem: Bilevel) -> Iterator[Reached]:
    return by_engine(problem, gimli.memory.Budget(BUDGETS[problem.name.split(" ")[0]]))


BUDGETS = {"quadratics": "1MiB", "logistic": "2MiB", "cleaning": "16MiB", "omniglot": "32MiB"}
