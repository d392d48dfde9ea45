"""gimli_core, eager: unrolled with every graph kept; within a budget; and differentiated at the inner minimum.

A budget is about a third of what all graphs of a family's largest problem take. The implicit gradient is told to go
on where the inner loop is not yet at rest, as the peers' do without a word; it still refuses a Hessian that is not
positive definite, and a system that it has not solved: so its solver may take more iterations than the peers' do, and
what it takes is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import gimli_core as gimli
from tests.benchmarks.bilevel.methods import implicit as at_minimum
from tests.benchmarks.bilevel.methods import normal_cg
from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors, descended, outer_loop

BUDGETS = {
    "quadratics": "3MiB",
    "logistic": "6MiB",
    "cleaning": "16MiB",
    "omniglot": "32MiB",
}  # by the problems' families
MOST = 20  # times the peers' iterations


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


def roomy(problem: Bilevel) -> Iterator[Reached]:
    """As `budgeted`, with room for all that a process loads."""
    return by_engine(problem, gimli.memory.Budget("1GiB"))


def implicit(problem: Bilevel) -> Iterator[Reached]:
    from gimli_core.implicit import CG, implicit_gradient

    inner = gimli.Problem(problem.train_loss, problem.val_loss, gimli.optimizers.SGD(lr=problem.lr))

    def hypergradient(phi: Tensors) -> tuple[Tensor, Tensors]:
        solver = CG(rtol=normal_cg.TOLERANCE, steps=MOST * at_minimum.ITERATIONS)
        result = implicit_gradient(
            inner, descended(problem, phi), problem.train, problem.val, phi_loss=phi, solver=solver,
            inner_tolerance=math.inf,
        )  # fmt: skip
        return result.val_loss, result.A_loss

    return outer_loop(problem, hypergradient)
