"""mesh= of the functions beside `meta_gradient`: what is natural works, what is not is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import Adam
from tests.processes.cases import Inner, inner, mean_square, part_of, same_bits, val_loss
from tests.processes.launching import results_on_ranks

J, T = 2, 3
PROBLEM = gimli.Problem(mean_square, val_loss, Adam(lr=0.05))


def parts(given: Inner, rank: int, size: int) -> Inner:
    batches = [part_of(batch, rank, size) for batch in given.batches]
    return given._replace(batches=batches, val_batch=part_of(given.val_batch, rank, size))


def calls(mesh: bool) -> dict[str, Any]:
    """Each function with its mesh, or alone."""
    of_tasks, whole = inner(J, T), inner(J)
    mine = parts(whole, distributed.get_rank(), distributed.get_world_size()) if mesh else whole
    tasks: dict[str, Any] = {"mesh": "tasks"} if mesh else {}
    data: dict[str, Any] = {"mesh": "data"} if mesh else {}
    chunked = gimli.Tasks(T, chunk=1)
    more = {"phi_loss": of_tasks.phi_loss}
    adapted = gimli.adapt(PROBLEM, *of_tasks[:2], tasks=chunked, **more, **tasks)
    measured = gimli.evaluate(PROBLEM, *of_tasks[:3], tasks=chunked, **more, **tasks)
    over_data = gimli.adapt(PROBLEM, *mine[:2], **more, **data)
    walk = gimli.step_through(PROBLEM, *mine[:3], phi_opt={"lr": torch.tensor(0.05)}, **more, **data)
    lines = [moment.line for moment in walk]
    return {
        "adapt, tasks": adapted.theta_J,
        "evaluate": {**measured.metrics, **measured.trajectory.theta_J},
        "adapt, data": over_data.theta_J,
        "walk": {"A": walk.result.A_opt["lr"], "lines": torch.tensor(lines)},
    }


def refused() -> list[str]:
    given, told = inner(J), []
    for call in (
        lambda: gimli.evaluate(PROBLEM, *given[:3], phi_loss=given.phi_loss, mesh="data"),
        lambda: gimli.step_through(PROBLEM, *given[:3], phi_loss=given.phi_loss, mesh="shard"),
        lambda: gimli.step_through(PROBLEM, *inner(J, T)[:3], phi_loss=given.phi_loss, tasks=T, mesh="tasks"),
    ):
        with pytest.raises(ArgumentError) as raised:
            call()
        told.append(str(raised.value))
    return told


def both() -> tuple[dict[str, Any], list[str]]:
    return calls(True), refused()


def test_adapt_evaluate_and_a_walk_over_ranks_are_what_one_process_computes(tmp_path: Path) -> None:
    alone = calls(False)
    for found, told in results_on_ranks(2, both, directory=tmp_path):
        for name in ("adapt, tasks", "evaluate"):
            same_bits(found[name], alone[name])
        torch.testing.assert_close(found["adapt, data"], alone["adapt, data"], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found["walk"], alone["walk"], rtol=1e-12, atol=1e-14)
        assert all(line.startswith("mesh: expected None") for line in told)


def test_a_fixed_point_is_each_processs_own() -> None:
    given = inner(J)
    with pytest.raises(ArgumentError, match="mesh: expected None at a fixed point"):
        gimli.implicit_gradient(PROBLEM, *given[:3], mesh="tasks")  # type: ignore[arg-type]
