"""Runs over ranks that end their process on purpose, and note all that they reach."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

import gimli_core as gimli
from gimli_core.memory import Checkpoint
from gimli_core.optimizers import Adam
from gimli_core.processes import words
from gimli_core.runs import journal
from tests.processes.cases import call, inner, mean_square, part_of, val_loss

__all__ = ["of_both", "of_data", "of_tasks", "outlives"]

J, T = 6, 4


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def outlives() -> None:
    """What the rank says that will be killed is in test_faults.py: the others need not wait for its words, 3 s long."""
    words.SECONDS = 0.2


class Killing:
    """A loss with dropout that ends its process at one evaluation."""

    def __init__(self, evaluation: int | None, dropout: float = 0.5) -> None:
        self.left = -1 if evaluation is None else evaluation
        self.dropout = dropout

    def __call__(self, theta: Any, phi: Any, batch: Any) -> Tensor:
        self.left -= 1
        if self.left == 0:
            kill()
        return mean_square(theta, phi, batch, self.dropout)


def of_data(resume: str | None, seed: int, rank: int = 0, evaluation: int | None = None, when: str = "") -> Any:
    """One call that notes all that it does; `rank` ends at an evaluation, or before or after a file is moved."""
    mine, size = distributed.get_rank(), distributed.get_world_size()
    journal.SECONDS = 0.0
    if evaluation is not None or when:
        outlives()
    torch.manual_seed(100 * seed + mine)
    given = inner(J)
    given = given._replace(
        batches=[part_of(batch, mine, size) for batch in given.batches], val_batch=part_of(given.val_batch, mine, size)
    )
    if when == "end" and mine == rank:
        journal.Journal.finish = lambda self: kill()  # type: ignore[method-assign]
    elif when and mine == rank:
        replace, left = os.replace, [evaluation or 0]

        def replace_or_die(source: Any, target: Any) -> None:
            moved = str(target).endswith("progress") and str(source).endswith("progress-next")
            left[0] -= moved
            if moved and left[0] == 0 and when == "before":
                kill()
            replace(source, target)
            if moved and left[0] == 0 and when == "after":
                kill()

        os.replace = replace_or_die  # type: ignore[assignment]
    loss = Killing(evaluation if mine == rank and not when else None)
    problem = gimli.Problem(loss, val_loss, Adam())
    more = {"memory": Checkpoint(2), "mesh": "data", "check": False, "resume": resume}
    return call(problem, given, {"lr": 0.05}, **more).state_dict()


def of_tasks(resume: str | None, seed: int, rank: int = 0, evaluation: int | None = None) -> Any:
    journal.SECONDS = 0.0
    if evaluation is not None:
        outlives()
    torch.manual_seed(seed)
    loss = Killing(evaluation if distributed.get_rank() == rank else None)
    problem = gimli.Problem(loss, val_loss, Adam())
    more = {"memory": Checkpoint(1), "tasks": T, "mesh": "tasks", "check": False, "resume": resume}
    return call(problem, inner(3, T), {"lr": 0.05}, **more).state_dict()


def of_both(resume: str | None, seed: int, rank: int = 0, evaluation: int | None = None, W: int = 2) -> Any:
    """Tasks over groups of W ranks, each of which has a part of every task's batch."""
    journal.SECONDS = 0.0
    if evaluation is not None:
        outlives()
    mesh = init_device_mesh("cpu", (distributed.get_world_size() // W, W), mesh_dim_names=("tasks", "data"))
    mine = mesh.get_local_rank("data")
    torch.manual_seed(100 * seed + mine)
    given = inner(3, T)
    given = given._replace(
        batches=[part_of(batch, mine, W, 1) for batch in given.batches], val_batch=part_of(given.val_batch, mine, W, 1)
    )
    loss = Killing(evaluation if distributed.get_rank() == rank else None)
    problem = gimli.Problem(loss, val_loss, Adam())
    more = {"memory": Checkpoint(1), "tasks": T, "mesh": mesh, "check": False, "resume": resume}
    return call(problem, given, {"lr": 0.05}, **more).state_dict()
