"""A rank that raises, dies, hangs or was given something else: all others end with an error that says where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gimli_core as gimli
from gimli_core.optimizers import SGD
from tests.processes.cases import call, inner, mean_square, part_of, val_loss
from tests.processes.launching import on_ranks, results_on_ranks

J = 4


class AtStep:
    """A loss that does something else at one evaluation, on one rank."""

    def __init__(self, rank: int, evaluation: int, act: Callable[[], Any]) -> None:
        self.rank, self.left, self.act = rank, evaluation, act

    def __call__(self, theta: Any, phi: Any, batch: Any) -> Tensor:
        if distributed.get_rank() == self.rank:
            self.left -= 1
            if self.left == -1:
                self.act()
        return mean_square(theta, phi, batch)


def failing() -> None:
    raise KeyError("no such label")


def data_call(problem: gimli.Problem, **more: Any) -> Any:
    rank, size = distributed.get_rank(), distributed.get_world_size()
    given = inner(J)
    batches = [part_of(batch, rank, size) for batch in given.batches]
    given = given._replace(batches=batches, val_batch=part_of(given.val_batch, rank, size))
    return call(problem, given, {"lr": 0.1}, mesh="data", **{"check": False, **more})


def what_is_raised(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def raised_on_one_rank() -> dict[str, str]:
    """One fault after the other, all in one group: it is still of use after each."""
    rank, given, sgd = distributed.get_rank(), inner(J), SGD()
    last, odd = distributed.get_world_size() - 1, rank == 1
    plain = gimli.Problem(mean_square, val_loss, sgd)

    def tasks(**more: Any) -> Any:
        problem = more.pop("problem", plain)
        return call(problem, more.pop("given", inner(J, 3)), {"lr": 0.1}, tasks=3, mesh="tasks", **more)

    def nan(theta: Any, phi: Any, batch: Any) -> Tensor:
        return mean_square(theta, phi, batch) * (float("nan") if odd else 1.0)

    other = {"log_l2": given.phi_loss["log_l2"] + (1e-15 if rank == last else 0)}
    otherwise = mean_square if not odd else (lambda theta, phi, batch: mean_square(theta, phi, batch) * 2)
    wrong = inner(J, 3)._replace(val_batch=0 if odd else inner(J, 3).val_batch)
    works: dict[str, Callable[[], Any]] = {
        "forwards": lambda: data_call(gimli.Problem(AtStep(1, 2, failing), val_loss, sgd)),
        "backwards": lambda: data_call(
            gimli.Problem(AtStep(1, J + 1, failing), val_loss, sgd), second_order="forward_over_reverse"
        ),
        "validation": lambda: data_call(gimli.Problem(mean_square, AtStep(1, 0, failing), sgd)),
        "nan": lambda: data_call(gimli.Problem(nan, val_loss, sgd)),
        "phi": lambda: data_call(plain, phi_loss=other, check=True),
        "code": lambda: data_call(gimli.Problem(otherwise, val_loss, sgd)),
        "task raises": lambda: tasks(problem=gimli.Problem(AtStep(1, 1, failing), val_loss, sgd), check=False),
        "tasks' input": lambda: tasks(given=wrong),
        "tasks' steps": lambda: tasks(steps=3 if rank == last else 2),
        "well": lambda: data_call(plain),
    }
    return {name: what_is_raised(work) for name, work in works.items()}


WORD = "rank 1 of 'data' raised KeyError: 'no such label'"


def test_a_rank_that_raises_or_differs_ends_all_with_what_and_where(tmp_path: Path) -> None:
    every = results_on_ranks(3, raised_on_one_rank, directory=tmp_path)
    for rank, told in enumerate(every):
        if rank != 1:
            assert told["forwards"] == (
                "ProcessError: line 5, G_j at inner step j = 2 of 4: rank 1 of 3 of 'data' raised KeyError: "
                "'no such label'; in train_loss; at inner step j = 2 of 4"
            )
            assert "lines 13-14, the products at inner step j = 2 of 4: rank 1 of 3 of 'data'" in told["backwards"]
            assert told["validation"].startswith(f"ProcessError: lines 8-9, L_val at theta_4: {WORD}")
            assert "rank 1 of 3 of 'data' raised NotFiniteError: train_loss" in told["nan"]
            assert "rank 1 of 3 of 'tasks' raised KeyError: 'no such label'" in told["task raises"]
            assert "rank 1 of 'tasks' raised" in told["tasks' input"]
        else:
            for name in ("forwards", "backwards", "validation", "task raises"):
                assert told[name] == "KeyError: 'no such label'"
            assert told["nan"].startswith("NotFiniteError")
        assert told["phi"].startswith(
            "ArgumentError: phi_loss: expected the same on all ranks; got another on rank 2 of 'data' than on rank 0"
        )
        assert told["code"].startswith("ArgumentError: train_loss: expected the same on all ranks")
        assert told["tasks' steps"].startswith("ArgumentError: steps: expected the same on all ranks")
        assert told["well"] == "nothing"


def dies(how: str) -> str:
    def act() -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(20)

    return what_is_raised(lambda: data_call(gimli.Problem(AtStep(1, 2, act), val_loss, SGD())))


def test_a_rank_that_is_killed_ends_the_others_with_the_step_and_its_number(tmp_path: Path) -> None:
    first, killed, last = on_ranks(3, dies, "kill", directory=tmp_path)
    assert killed.exitcode == -signal.SIGKILL
    for ended in (first, last):
        assert ended.value.startswith("ProcessError: line 5, G_j at inner step j = 2 of 4: expected all 3 ranks")
        assert "rank 1 says nothing: it has died, or hangs" in ended.value


@pytest.mark.long
def test_a_rank_that_hangs_ends_the_others_after_the_groups_timeout(tmp_path: Path) -> None:
    first, _, last = on_ranks(3, dies, "hang", directory=tmp_path, timeout=5.0)
    for ended in (first, last):
        assert "at inner step j = 2 of 4" in ended.value
        assert "rank 1 says nothing: it has died, or hangs" in ended.value


def undecomposed() -> dict[str, str]:
    def contrastive(theta: Any, phi: Any, batch: Any) -> Tensor:
        z = batch[0] @ theta["a"]
        return torch.logsumexp(z @ z.T, 1).mean()

    norm, wrapped = nn.BatchNorm1d(4, affine=False), nn.Linear(3, 1)

    def normed(theta: Any, phi: Any, batch: Any) -> Tensor:
        return (norm(batch[0] @ theta["a"]) ** 2 * torch.arange(4.0)).mean()

    def of(train_loss: Any, val: Any = val_loss) -> str:
        rank, given = distributed.get_rank(), inner(J, examples=8)
        batches = [part_of(batch, rank, 2) for batch in given.batches]
        part = given._replace(batches=batches, val_batch=part_of(given.val_batch, rank, 2), phi_loss={})
        problem = gimli.Problem(train_loss, val, SGD())
        return what_is_raised(lambda: call(problem, part, {"lr": 0.1}, mesh="data"))

    def with_module(module: Any) -> Callable[..., Tensor]:
        return lambda theta, phi, batch: (module(batch[0]) ** 2).mean() + (theta["a"] ** 2).sum()

    sharded: Any = fully_shard(nn.Linear(3, 1))
    return {
        "contrastive": of(contrastive),
        "batch norm": of(normed),
        "outer": of(lambda theta, phi, batch: mean_square(theta, {"log_l2": torch.tensor(-3.0)}, batch), contrastive),
        "ddp": of(with_module(DistributedDataParallel(wrapped))),
        "fsdp": of(with_module(sharded)),
    }


def test_what_is_no_sum_over_parts_and_modules_of_other_libraries_are_refused_by_name(tmp_path: Path) -> None:
    for told in results_on_ranks(2, undecomposed, directory=tmp_path):
        assert told["contrastive"].startswith("ArgumentError: train_loss on the parts of ranks: expected Σ_i")
        assert "BatchNorm would be trained on each part" in told["batch norm"]
        assert told["outer"].startswith("ArgumentError: val_loss on the parts of ranks: expected Σ_i")
        assert "got DistributedDataParallel, of which" in told["ddp"]
        assert "got FSDPModule, of which" in told["fsdp"]
