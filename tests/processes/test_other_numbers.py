"""Runs that were killed go on with another number of ranks, or say why they cannot."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from gimli_core.errors import ArgumentError, ProcessError
from gimli_core.memory import RetainGraphs, Schedule, StoreStates
from gimli_core.notation import slots
from gimli_core.optimizers import Adam
from gimli_core.processes.mesh import Ranks
from gimli_core.processes.pieces import Pieces
from gimli_core.transforms.rule_on_shards import RuleByGathering, RuleOnPieces
from tests.processes import renumbered
from tests.processes.cases import part_of, same_bits, to_rounding
from tests.processes.launching import on_ranks, results_on_ranks
from tests.processes.renumbered import of_mesh


def killed(size: int, mesh: str, directory: Path, where: Path, *args: Any) -> None:
    ended = on_ranks(size, of_mesh, mesh, str(directory), *args, directory=where)
    assert ended[args[0]].exitcode == -signal.SIGKILL, ended[args[0]].error


def numbers(directory: Path) -> set[str]:
    """The numbers of ranks that have files there."""
    return {path.name.partition("-of-")[2] for path in directory.iterdir()}


@pytest.mark.parametrize("mesh", ["data", "shard", "data+shard"])
def test_a_killed_run_goes_on_with_more_ranks_and_with_fewer(mesh: str, tmp_path: Path) -> None:
    ((expected, evaluations),) = results_on_ranks(1, of_mesh, mesh, None, directory=tmp_path / "alone")
    directory = tmp_path / "run"
    for i, (size, *place) in enumerate([(2, 1, 4), (3, 0, 7)]):  # forwards; in the sweep
        killed(size, mesh, directory, tmp_path / str(i), *place)
        assert numbers(directory) == {str(size)}
    for result, again in results_on_ranks(2, of_mesh, mesh, str(directory), directory=tmp_path / "last"):
        to_rounding(result, expected)
        if mesh == "shard":
            same_bits(result["theta_J"], expected["theta_J"])
        assert 0 < again < evaluations
    assert not directory.exists()


@pytest.mark.long
@pytest.mark.parametrize("mesh", ["data", "shard", "data x shard"])
@pytest.mark.parametrize("memory", [RetainGraphs(), StoreStates()])
def test_whatever_stays_of_a_step_and_in_a_mesh_of_two_dimensions(mesh: str, memory: Schedule, tmp_path: Path) -> None:
    directory, more = tmp_path / "run", (0.0, 2, memory)
    sizes = (2, 4, 2) if mesh == "data x shard" else (2, 3, 1)
    args = (mesh, None, 0, None, None, *more)
    (expected, _), *_ = results_on_ranks(sizes[0], of_mesh, *args, directory=tmp_path / "alone")
    for i, size in enumerate(sizes[:2]):
        killed(size, mesh, directory, tmp_path / str(i), 0, 4 + i, None, *more)
    last = (mesh, str(directory), 0, None, None, *more)
    for result, _ in results_on_ranks(sizes[2], of_mesh, *last, directory=tmp_path / "last"):
        to_rounding(result, expected)
    assert not directory.exists()


def test_dropout_goes_on_in_shards_which_draw_alike(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    ((expected, _),) = results_on_ranks(1, of_mesh, "shard", None, 0, None, None, 0.5, directory=tmp_path / "alone")
    killed(2, "shard", directory, tmp_path / "0", 1, 9, None, 0.5)
    last = ("shard", str(directory), 0, None, None, 0.5, 1, None, 99)  # another seed
    for result, _ in results_on_ranks(3, of_mesh, *last, directory=tmp_path / "last"):
        to_rounding(result, expected)
        same_bits(result["theta_J"], expected["theta_J"])


@pytest.mark.parametrize("operations", [(6,), pytest.param((1, 3, 9, 13, 17, 21, 25), marks=pytest.mark.long)])
def test_a_rank_may_be_killed_while_files_are_dealt_anew(operations: Iterable[int], tmp_path: Path) -> None:
    """Before each operation on files of a run that takes over from another number of ranks, which goes on after."""
    ((expected, _),) = results_on_ranks(1, of_mesh, "shard", None, directory=tmp_path / "alone")
    for operation in operations:
        directory, where = tmp_path / f"run-{operation}", tmp_path / str(operation)
        killed(2, "shard", directory, where / "0", 1, 8)
        killed(3, "shard", directory, where / "1", 0, None, operation)
        for result, evaluations in results_on_ranks(2, of_mesh, "shard", str(directory), directory=where / "2"):
            to_rounding(result, expected)
            assert evaluations < 8
        assert not directory.exists()


def refused(size: int, mesh: str, directory: Path, where: Path, *args: Any) -> list[str]:
    """What each rank was told; nothing is changed in the directory."""
    before = sorted(path for path in directory.rglob("*") if path.is_file())
    told = [each.error or "" for each in on_ranks(size, of_mesh, mesh, str(directory), *args, directory=where)]
    assert sorted(path for path in directory.rglob("*") if path.is_file()) == before
    return told


def test_what_belongs_to_a_rank_is_refused_by_name_and_stays_with_the_number_that_began(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    expected = results_on_ranks(2, of_mesh, "data", None, 0, None, None, 0.5, directory=tmp_path / "alone")
    killed(2, "data", directory, tmp_path / "0", 1, 4, None, 0.5)
    for told in refused(1, "data", directory, tmp_path / "1", 0, None, None, 0.5):
        assert "ArgumentError: resume: expected a run that another number of ranks can go on with" in told
        assert "draws random numbers, of which each rank has a stream of its own. Start 2 ranks of 'data'" in told
    for told in refused(2, "shard", directory, tmp_path / "2", 0, None, None, 0.5):
        assert "where 2 ranks of 'data' began. Share the run as they did" in told
    last = ("data", str(directory), 0, None, None, 0.5, 1, None, 99)
    for (found, _), (alone, _) in zip(
        results_on_ranks(2, of_mesh, *last, directory=tmp_path / "last"), expected, strict=True
    ):
        same_bits(found, alone)


def test_the_files_of_all_ranks_are_asked_for_and_the_same_problem(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    killed(2, "shard", directory, tmp_path / "0", 1, 8)
    for told in refused(3, "shard", directory, tmp_path / "1", 0, None, None, 0.0, 0):  # another rule
        assert "which holds a run of another problem" in told
    shutil.rmtree(directory / "shard-0-of-2")
    for told in refused(3, "shard", directory, tmp_path / "2"):
        assert "expected the files of all ranks that began the run" in told
        assert "where shard-0-of-2 is missing. Bring them together" in told


def unshared(directory: str) -> str:
    with pytest.raises((ArgumentError, ProcessError)) as raised:
        of_mesh("shard", f"{directory}/{distributed.get_rank()}")
    return str(raised.value)


def test_ranks_that_do_not_see_the_files_of_all_are_refused(tmp_path: Path) -> None:
    """Each host has the files of its own rank alone."""
    killed(2, "shard", tmp_path / "run", tmp_path / "first", 1, 8)
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / "run" / f"shard-{rank}-of-2").rename(tmp_path / str(rank) / f"shard-{rank}-of-2")
    every = results_on_ranks(3, unshared, str(tmp_path), directory=tmp_path / "ranks")
    assert all("resume: expected a directory that all ranks share" in told for told in every)


def other_batches(directory: str) -> str:
    """Both ranks hand over the first half of every batch."""
    renumbered.part_of = lambda batch, rank, size: part_of(batch, 0, size)  # type: ignore[assignment]
    with pytest.raises(ArgumentError) as raised:
        of_mesh("data", directory)
    return str(raised.value)


def test_other_batches_are_found_by_their_loss(tmp_path: Path) -> None:
    killed(1, "data", tmp_path / "run", tmp_path / "0", 0, 8)
    for told in results_on_ranks(2, other_batches, str(tmp_path / "run"), directory=tmp_path / "ranks"):
        assert "train_batches: expected the batches of the run that 1 rank of 'data' began" in told


SIZES = st.integers(1, 5)


@given(SIZES, SIZES, st.lists(st.integers(0, 7), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_states_are_dealt_anew_as_they_would_be_cut(before: int, now: int, shape: list[int]) -> None:
    """And what is summed over ranks keeps its sum; what all have stays what it is."""
    theta = {str(i): torch.arange(float(n)) + i for i, n in enumerate(shape)}
    state = {"step": torch.tensor(2.0), "m": theta, "n": {k: torch.tensor(len(v) + 1.0) for k, v in theta.items()}}
    cut = {"m": set(theta), "n": set()}
    for kind in (RuleOnPieces, RuleByGathering):
        old, new = (
            [kind(rule=Adam(), pieces=Pieces.of(Ranks("shard", None, r, W), theta), cut=cut) for r in range(W)]
            for W in (before, now)
        )
        parts, S = [rule.part(state) for rule in old], [slots(rule.part(state)) for rule in old]
        redealt = [rule.redealt_adjoint(S) for rule in new]
        for rule, of_rank in zip(new, redealt, strict=True):
            same_bits(rule.redealt(parts), rule.part(state))
            same_bits(of_rank["m"], rule.part(state)["m"])
        for k, number in state["n"].items():
            total = sum(of_rank["n"][k] for of_rank in redealt)
            assert total == number * (before if kind is RuleOnPieces else now)
