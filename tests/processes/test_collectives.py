"""What ranks send each other, and what they must agree upon, by real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed

from gimli_core.errors import ArgumentError, ProcessError
from gimli_core.processes.agreement import together
from gimli_core.processes.collectives import Collective, Weight, all_gathered, counting, everyones, weighed
from gimli_core.processes.mesh import check_mesh
from tests.processes.launching import results_on_ranks


def each_kind_of_message() -> tuple[object, ...]:
    mesh = check_mesh("data")
    assert mesh is not None
    ranks = mesh.data
    assert ranks is not None
    mine = float(ranks.rank + 1)
    tensors = {"a": torch.full((2, 3), mine, dtype=torch.float32), "b": torch.tensor(mine)}
    with counting() as sent:
        total, counts, _ = weighed(ranks, tensors, "G_j", Weight(2.0), [1.0])
        every = all_gathered(ranks, torch.tensor([mine]), "shards")
        words = everyones(ranks, {"rank": ranks.rank}, "words")
    part = everyones(ranks, {"of a set": torch.arange(1000.0)[:2]}, "a batch")[0]["of a set"]
    return {**total, "counts": counts}, every, words, sent, mesh.first, (part, part.untyped_storage().nbytes())


def disagreements() -> list[str]:
    mesh = check_mesh(torch.distributed.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("tasks", "data")))
    assert mesh is not None
    rank, told = distributed.get_rank(), []

    def fails_on_the_last() -> int:
        if rank == 3:
            raise KeyError("no such file")
        return rank

    for work in (
        lambda: together(mesh, "call", lambda: None, lambda: {"theta_0": "a", "steps": "3"}),
        lambda: together(mesh, "call", lambda: None, lambda: {"theta_0": "a", "steps": "4" if rank == 1 else "3"}),
        lambda: together(mesh, "before any work", fails_on_the_last),
    ):
        try:
            told.append(repr(work()))
        except (ArgumentError, ProcessError, KeyError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def test_messages_have_all_ranks_values_in_rank_order_and_are_counted(tmp_path: Path) -> None:
    for rank, (total, every, words, sent, first, (part, nbytes)) in enumerate(
        results_on_ranks(3, each_kind_of_message, directory=tmp_path)
    ):
        assert torch.equal(total["a"], torch.full((2, 3), 12.0, dtype=torch.float32))
        assert total["a"].dtype == torch.float32
        assert total["b"] == 12.0
        assert total["counts"].tolist() == [3.0]
        assert [float(one) for one in every] == [1.0, 2.0, 3.0]
        assert words == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert sent == [
            Collective("all_reduce", "data", "G_j", 8 * 9),
            Collective("all_gather", "data", "shards", 8),
            Collective("all_gather_object", "data", "words", 0),
        ]
        assert first == (rank == 0)
        assert (part.tolist(), nbytes) == ([0.0, 1.0], 16)


def test_all_ranks_of_a_mesh_hear_of_what_one_has_otherwise(tmp_path: Path) -> None:
    every = results_on_ranks(4, disagreements, directory=tmp_path)
    for rank, (alike, other, raised) in enumerate(every):
        assert alike == "None"
        assert other.startswith(
            "ArgumentError: steps: expected the same on all ranks; got another on rank 0 of 'tasks', 1"
        )
        assert raised == (
            "KeyError: 'no such file'"
            if rank == 3
            else "ProcessError: before any work: rank 1 of 'tasks', 1 of 'data' raised KeyError: 'no such file'"
        )


@pytest.mark.parametrize(("mesh", "says"), [("task", "Did you mean 'tasks'"), ("data", "torchrun"), (3, "got int")])
def test_a_mesh_that_is_none_says_how_to_make_one(mesh: object, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        check_mesh(mesh)
