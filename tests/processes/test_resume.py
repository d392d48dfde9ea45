"""Runs over ranks that are killed go on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from gimli_core.errors import ArgumentError, ProcessError
from tests.processes.cases import same_bits
from tests.processes.killed import of_both, of_data, of_tasks
from tests.processes.launching import on_ranks, results_on_ranks


@pytest.mark.parametrize(
    "kills",
    [
        [(1, 5, ""), (0, 3, "before"), (1, 2, "after")],
        pytest.param(
            [(r, n, when) for r in (0, 1) for n, when in ((1, "before"), (2, "after"), (3, ""))],
            marks=pytest.mark.long,
        ),
    ],
)
def test_one_inner_loop_goes_on_from_one_place_wherever_a_rank_was_killed(tmp_path: Path, kills: list[Any]) -> None:
    expected = results_on_ranks(2, of_data, None, 0, directory=tmp_path / "alone")
    directory = tmp_path / "run"
    for i, (rank, evaluation, when) in enumerate(kills):
        ended = on_ranks(2, of_data, str(directory), i, rank, evaluation, when, directory=tmp_path / str(i))
        assert ended[rank].exitcode == -signal.SIGKILL
        assert ended[1 - rank].exitcode == 1
        assert "ProcessError" in (ended[1 - rank].error or "")
    for rank, found in enumerate(results_on_ranks(2, of_data, str(directory), 99, directory=tmp_path / "last")):
        same_bits(found, expected[rank])
    assert not directory.exists()


def test_tasks_go_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    expected = results_on_ranks(1, of_tasks, None, 0, directory=tmp_path / "alone")
    directory = tmp_path / "run"
    for i, (size, rank, evaluation) in enumerate([(2, 0, 8), (3, 1, 1)]):  # of three, rank 1 has what rank 0 had begun
        ended = on_ranks(size, of_tasks, str(directory), i, rank, evaluation, directory=tmp_path / str(i))
        assert ended[rank].exitcode == -signal.SIGKILL
    assert {path.name for path in directory.iterdir()} >= {"seed", "tasks-0"}
    for found in results_on_ranks(2, of_tasks, str(directory), 99, directory=tmp_path / "last"):
        same_bits(found, expected[0])
    assert not directory.exists()


def test_none_forgets_what_it_reached_before_all_have_come_to_the_end(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    ended = on_ranks(2, of_data, str(directory), 0, 1, None, "end", directory=tmp_path / "0")
    assert ended[1].exitcode == -signal.SIGKILL
    assert "ProcessError: resume: expected all 2 ranks" in (ended[0].error or "")
    assert all((directory / f"data-{rank}-of-2" / "progress").exists() for rank in range(2))
    expected = results_on_ranks(2, of_data, None, 0, directory=tmp_path / "alone")
    for rank, found in enumerate(results_on_ranks(2, of_data, str(directory), 99, directory=tmp_path / "last")):
        same_bits(found, expected[rank])


@pytest.mark.long
def test_tasks_of_which_each_is_shared_go_on_too(tmp_path: Path) -> None:
    expected = results_on_ranks(4, of_both, None, 0, directory=tmp_path / "alone")
    directory = tmp_path / "run"
    ended = on_ranks(4, of_both, str(directory), 0, 1, 8, directory=tmp_path / "0")
    assert ended[1].exitcode == -signal.SIGKILL
    assert {"data-0-of-2", "data-1-of-2"} == {path.name for path in directory.iterdir()}
    ended = on_ranks(2, of_both, str(directory), 1, 0, 2, directory=tmp_path / "1")  # one pair goes on with all
    assert ended[0].exitcode == -signal.SIGKILL
    for rank, found in enumerate(results_on_ranks(4, of_both, str(directory), 99, directory=tmp_path / "last")):
        same_bits(found, expected[rank])
    assert not directory.exists()


def unshared(directory: str) -> str:
    with pytest.raises((ArgumentError, ProcessError)) as raised:
        of_tasks(f"{directory}/{distributed.get_rank()}", 0)
    return str(raised.value)


def test_a_directory_that_ranks_do_not_share_is_refused_on_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first, second = results_on_ranks(2, unshared, str(tmp_path / "run"), directory=tmp_path / "ranks")
    assert "resume: expected a directory that all ranks share" in second
    assert "rank 1 of 'tasks' raised ArgumentError: resume: expected a directory that all ranks share" in first
    assert list((tmp_path / "run").iterdir()) == []


def other_number(resume: str) -> str:
    with pytest.raises(ArgumentError) as raised:
        of_both(resume, 0, W=1)
    return str(raised.value)


def test_tasks_go_on_with_the_number_of_ranks_that_shared_each(tmp_path: Path) -> None:
    ended = on_ranks(2, of_both, str(tmp_path / "run"), 0, 0, 6, directory=tmp_path / "0")
    assert ended[0].exitcode == -signal.SIGKILL
    for told in results_on_ranks(1, other_number, str(tmp_path / "run"), directory=tmp_path / "1"):
        assert "where data-of-2 began. Start as many ranks" in told


@pytest.mark.long
def test_torchrun_restarts_a_killed_run_which_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    expected = results_on_ranks(2, of_data, None, 0, directory=tmp_path / "alone")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    program = ["-m", "tests.processes.restarted", str(tmp_path)]
    # Else restarted ranks read the addresses of dead ones in the store: github.com/pytorch/pytorch/issues/135712.
    alone = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **alone}
    done = subprocess.run(
        [sys.executable, *torchrun, *program], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        same_bits(torch.load(tmp_path / f"result-{rank}", weights_only=False), expected[rank])
