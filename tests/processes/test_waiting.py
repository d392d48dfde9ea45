"""Within the loops of a run over ranks nothing is read back from the device, but by collectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import gimli_core as gimli
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import Adam, ClipNorm
from gimli_core.processes.collectives import numbers
from tests.device.check import Where
from tests.device.synchronisation import STEPS, Reads, Within, as_on_a_device, on, run
from tests.processes.cases import part_of
from tests.processes.launching import results_on_ranks


def reads(mesh: str) -> dict[str, int]:
    """What was read within the loops of runs by three schedules, of two rules; by operation, how often."""
    seen: dict[str, int] = {}
    rank, size = distributed.get_rank(), distributed.get_world_size()
    for rule in (Adam(), ClipNorm(Adam(), max_norm=1.0)):
        made = on(Where(torch.device("cpu"), quick=True, data=Path()), rule)
        if "data" in mesh:  # weights that change from step to step
            parts = [part_of(batch, rank, size) for batch in made["train_batches"]]
            made["train_batches"] = [gimli.Share(part, j + 1.5) for j, part in enumerate(parts)]
            made["val_batch"] = part_of(made["val_batch"], rank, size)
        for memory in (RetainGraphs(), StoreStates(), Checkpoint(2)):
            with as_on_a_device(), Reads() as mode:
                switch = Within(lambda on, mode=mode: setattr(mode, "on", on))
                run({**made, "mesh": mesh, "check": False}, memory, switch, lines=False)
            for name, count in mode.seen.items():
                seen[name] = seen.get(name, 0) + count
    return seen


@pytest.mark.parametrize("mesh", ["data", "shard", "data+shard"])
def test_nothing_waits_within_the_loops_but_for_other_ranks(mesh: str, tmp_path: Path) -> None:
    assert results_on_ranks(2, reads, mesh, directory=tmp_path) == [{}, {}]


def looking(mesh: str) -> dict[str, int]:
    def loss(theta: dict[str, Tensor], phi: Any, batch: Any) -> Tensor:
        total = theta["w"].square().sum()
        return total * 2 if total > 1 else total  # read at each evaluation

    theta_0, batches = {"w": torch.ones(3)}, [torch.ones(2)] * STEPS
    made = {"problem": gimli.Problem(loss, loss, Adam()), "theta_0": theta_0, "train_batches": batches}
    with as_on_a_device(), Reads() as mode:
        switch = Within(lambda on: setattr(mode, "on", on))
        run({**made, "val_batch": batches[0], "mesh": mesh, "check": False}, RetainGraphs(), switch, lines=False)
    return dict(mode.seen)


def test_one_that_looks_is_seen(tmp_path: Path) -> None:
    for seen in results_on_ranks(2, looking, "shard", directory=tmp_path):
        assert sum(seen.values()) == STEPS - 2


def test_numbers_are_made_where_they_are() -> None:
    row = numbers((0.0, 2.5, -1.0), torch.float64, torch.device("cpu"))
    assert row.tolist() == [0.0, 2.5, -1.0]
