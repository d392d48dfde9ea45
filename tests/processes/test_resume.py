"""Runs over ranks that are killed go on to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import Checkpoint
from gimli_core.optimizers import Adam
from gimli_core.runs import journal
from tests.processes.cases import call, inner, mean_square, part_of, same_bits, val_loss
from tests.processes.launching import on_ranks, results_on_ranks

J, T = 6, 4


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killing:
    """A loss with dropout that ends its process at one evaluation."""

    def __init__(self, evaluation: int | None) -> None:
        self.left = -1 if evaluation is None else evaluation

    def __call__(self, theta: Any, phi: Any, batch: Any) -> Tensor:
        self.left -= 1
        if self.left == 0:
            kill()
        return mean_square(theta, phi, batch, 0.5)


def of_data(resume: str | None, seed: int, rank: int = 0, evaluation: int | None = None, when: str = "") -> Any:
    """One call that notes all that it does; `rank` ends at an evaluation, or before or after a file is moved."""
    mine, size = distributed.get_rank(), distributed.get_world_size()
    journal.SECONDS = 0.0
    torch.manual_seed(100 * seed + mine)
    given = inner(J)
    given = given._replace(
        batches=[part_of(batch, mine, size) for batch in given.batches], val_batch=part_of(given.val_batch, mine, size)
    )
    if when and mine == rank:
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
    torch.manual_seed(seed)
    loss = Killing(evaluation if distributed.get_rank() == rank else None)
    problem = gimli.Problem(loss, val_loss, Adam())
    more = {"memory": Checkpoint(1), "tasks": T, "mesh": "tasks", "check": False, "resume": resume}
    return call(problem, inner(3, T), {"lr": 0.05}, **more).state_dict()


@pytest.mark.parametrize(
    "kills",
    [
        [(1, 5, ""), (0, 3, "before"), (1, 2, "after")],
        pytest.param(
            [(r, n, when) for r in (0, 1) for n, when in ((1, "before"), (4, "after"), (9, ""), (13, ""))],
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


def other_number(resume: str) -> str:
    with pytest.raises(ArgumentError) as raised:
        of_data(resume, 0)
    return str(raised.value)


def test_one_inner_loop_is_refused_by_another_number_of_ranks(tmp_path: Path) -> None:
    ended = on_ranks(2, of_data, str(tmp_path / "run"), 0, 0, 6, directory=tmp_path / "0")
    assert ended[0].exitcode == -signal.SIGKILL
    for told in results_on_ranks(1, other_number, str(tmp_path / "run"), directory=tmp_path / "1"):
        assert "where data-of-2 began. Start as many ranks" in told
