"""Stored states over the ranks of "data": each keeps a part, and all together have every bit. And what shards keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

import gimli_core as gimli
from gimli_core.memory import Budget, Checkpoint, Schedule, StoreStates
from gimli_core.memory.schedules.actions import Tier
from gimli_core.memory.schedules.budget import choose, estimate
from gimli_core.memory.storage import Storage
from gimli_core.optimizers import Adam
from gimli_core.processes.mesh import check_mesh
from gimli_core.record import Point
from gimli_core.trees import nbytes
from tests.compare import agree
from tests.processes.cases import call, inner, mean_square, part_of, same_bits, val_loss
from tests.processes.launching import results_on_ranks

N = 20011  # elements of theta, which no number of ranks divides


def stored(disk: Path | None) -> tuple[list[int], bool]:
    """(bytes in memory of each of three points, whether they come back as they were)."""
    mesh = check_mesh("data")
    assert mesh is not None
    ranks = mesh.data
    assert ranks is not None
    storage = Storage(disk, ranks)
    state = {"step": torch.tensor(3.0), "m": {"w": torch.randn(3, 2).float()}, "skipped": {"v": torch.ones(())}}
    points = [Point(j, {"w": torch.full((3, 2), j).float(), "v": torch.rand(N)}, state, None) for j in (0, 1, 2)]
    for rank_of in points:
        for tensor in (rank_of.theta["v"], state["m"]["w"]):
            distributed.broadcast(tensor, 0)
    for point in points:
        storage.put(point, Tier.MEMORY if disk is None or point.j == 1 else Tier.DISK)
    held = [nbytes(point.theta) + nbytes(point.state) for point in storage._points.values()]
    back = [storage.get(point.j) for point in points]
    storage.close()

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return torch.equal(a, b) and a.dtype == b.dtype
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)

    return held, all(same(a.theta, b.theta) and same(a.state, b.state) for a, b in zip(points, back, strict=True))


@pytest.mark.parametrize("W", [2, 3])
def test_every_rank_keeps_a_part_of_a_point(W: int, tmp_path: Path) -> None:
    point = 8 * N + 4 * 6 + 8 + 4 * 6 + 8
    for held, same in results_on_ranks(W, stored, None, directory=tmp_path):
        assert same
        assert held[0] == point  # the caller's own
        assert all(abs(part - point / W) <= 16 for part in held[1:])


def test_parts_on_disk_come_back(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for held, same in results_on_ranks(2, stored, tmp_path / "disk", directory=tmp_path / "ranks"):
        assert same
        assert len(held) == 1


def over_both() -> list[dict[str, Any]]:
    """A batch over two ranks, theta over two others: (2, 2); by states, snapshots and a budget."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "shard"))
    given = inner(4)
    batches = [part_of(batch, mesh.get_local_rank("data"), 2) for batch in given.batches]
    given = given._replace(batches=batches, val_batch=part_of(given.val_batch, mesh.get_local_rank("data"), 2))
    problem = gimli.Problem(mean_square, val_loss, Adam())
    every: list[Schedule] = [StoreStates(), Checkpoint(2)]
    return [call(problem, given, {"lr": 0.05}, memory=memory, mesh=mesh).state_dict() for memory in every]


@pytest.mark.long
def test_a_batch_over_ranks_and_theta_over_ranks_at_once(tmp_path: Path) -> None:
    expected = call(gimli.Problem(mean_square, val_loss, Adam()), inner(4), {"lr": 0.05})
    for results in results_on_ranks(4, over_both, directory=tmp_path):
        for found in results:
            agree(gimli.MetaGradient(**found), expected, rtol=1e-12, atol=1e-14)


def over_the_same() -> list[Any]:
    """A batch and theta over the same ranks: by kept graphs, and by snapshots."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    given = inner(4)
    given = given._replace(
        batches=[part_of(batch, rank, size) for batch in given.batches], val_batch=part_of(given.val_batch, rank, size)
    )
    problem = gimli.Problem(mean_square, val_loss, Adam())
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("data+shard",))
    return [
        call(problem, given, {"lr": 0.05}, memory=memory, mesh=over).state_dict()
        for memory, over in ((None, "data+shard"), (Checkpoint(2), mesh))
    ]


def test_the_same_ranks_share_batches_and_theta(tmp_path: Path) -> None:
    expected = call(gimli.Problem(mean_square, val_loss, Adam()), inner(4), {"lr": 0.05})
    for results in results_on_ranks(2, over_the_same, directory=tmp_path):
        for found in results:
            agree(gimli.MetaGradient(**found), expected, rtol=1e-12, atol=1e-14)


def budgets() -> tuple[int, int, float, float, list[dict[str, Any]]]:
    """(bytes of a point, of a stored one, seconds that a budget buys on one process, and here; and two results)."""
    made = inner(30, examples=4)
    theta_0 = {"a": torch.randn(3, 400, generator=torch.Generator().manual_seed(1)), "b": torch.ones(400, 1) / 400}
    rank, size = distributed.get_rank(), distributed.get_world_size()
    cut = [part_of(batch, rank, size) for batch in made.batches]
    given = made._replace(theta_0=theta_0, batches=cut, val_batch=part_of(made.val_batch, rank, size))
    problem = gimli.Problem(mean_square, val_loss, Adam())
    arguments = (problem, given.theta_0, given.batches, given.val_batch)
    plan = gimli.plan(*arguments, phi_opt={"lr": torch.tensor(0.05)}, phi_loss=given.phi_loss, mesh="data")
    size_of = plan.least + 6 * plan.costs.point
    single = plan.costs._replace(ranks=1)
    alone = estimate(choose(Budget(size_of), 30, single), 30, single)[1]
    over = estimate(choose(Budget(size_of), 30, plan.costs), 30, plan.costs)[1]
    results = [
        call(problem, given, {"lr": 0.05}, memory=memory, mesh="data").state_dict()
        for memory in (Budget(size_of), StoreStates())
    ]
    return plan.costs.point, plan.costs.stored, alone, over, results


@pytest.mark.long
def test_a_budget_buys_more_on_more_ranks(tmp_path: Path) -> None:
    (point, stored_, alone, over, results), other = results_on_ranks(2, budgets, directory=tmp_path)
    assert (point, stored_, alone, over) == other[:4]  # one schedule on all ranks
    assert stored_ == -(-point // 2)
    assert over < alone
    same_bits(*results)
