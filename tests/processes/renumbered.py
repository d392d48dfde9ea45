"""Runs that end their process on purpose, wherever they are, and go on with another number of ranks."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

import gimli_core as gimli
from gimli_core.memory import Checkpoint, Schedule
from gimli_core.runs import journal
from tests.processes.cases import RULES, call, inner, part_of, val_loss
from tests.processes.killed import Killing, kill, outlives

__all__ = ["of_mesh"]

J = 6


def of_mesh(
    mesh: str,
    resume: str | None,
    rank: int = 0,
    evaluation: int | None = None,
    operation: int | None = None,
    dropout: float = 0.0,
    rule: int = 1,
    memory: Schedule | None = None,
    seed: int = 0,
) -> tuple[Any, int]:
    """(The result of a call that notes all that it does, the evaluations of the inner loss).

    Args:
        mesh: its use, or "data x shard": pairs that each share theta. Batches are split where there is "data".
        rank: ends at an evaluation of the loss, or before an operation on files, counted from 1: something is moved or
            removed.
    """
    journal.SECONDS = 0.0
    if evaluation is not None or operation is not None:
        outlives()
    torch.manual_seed(seed)
    mine, given = distributed.get_rank() == rank, inner(J)
    if operation is not None and mine:
        _kill_before(operation)
    over: Any = mesh
    part, size = distributed.get_rank(), distributed.get_world_size()
    if mesh == "data x shard":
        over = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "shard"))
        part, size = over.get_local_rank("data"), size // 2
    if "data" in mesh:
        batches = [part_of(batch, part, size) for batch in given.batches]
        given = given._replace(batches=batches, val_batch=part_of(given.val_batch, part, size))
    loss = Killing(evaluation if mine else None, dropout)
    optimizer, phi_opt = RULES[rule]
    more = {"memory": memory or Checkpoint(2), "check": False, "mesh": over, "resume": resume}
    result = call(gimli.Problem(loss, val_loss, optimizer), given, phi_opt, **more)
    return result.state_dict(), -1 - loss.left


def _kill_before(operation: int) -> None:
    left = [operation]

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                kill()
            return real(*args, **kwargs)

        return call

    for name in ("replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
