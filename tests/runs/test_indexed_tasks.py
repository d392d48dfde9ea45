"""Indexed entries that tasks share: the loss of each sees its own rows, and A_loss is the sum of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import Checkpoint
from gimli_core.meta_parameters.indexed import Rows
from gimli_core.optimizers import Adam
from tests import problems
from tests.compare import assert_identical, distance, said
from tests.indexed import J, N, dense, several, val_loss, weighted
from tests.killing import until_through
from tests.problems import every_schedule
from tests.processes.launching import results_on_ranks

T = 3


def both(loss: Any = val_loss) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The call of all tasks, and each task's own, whose loss looks up the rows itself."""
    torch.manual_seed(5)
    batches = [
        {"x": torch.randn(T, 4, 4), "y": torch.randn(T, 4, 2), "rows": torch.randint(N, (T, 4))} for _ in range(J)
    ]
    val_batch = {"x": torch.randn(T, 5, 4), "y": torch.randn(T, 5, 2)}
    w, l2 = torch.rand(N, 2), torch.tensor(-2.0)
    shared = {"theta_0": {"w": torch.randn(4, 2)}, "phi_opt": {"lr": torch.tensor(0.1)}}
    marked = {
        **shared,
        "problem": gimli.Problem(weighted, loss, Adam()),
        "train_batches": batches,
        "val_batch": val_batch,
        "phi_loss": {"of_each": gimli.indexed(w), "l2": l2},
    }
    plain = {**shared, "problem": gimli.Problem(dense, loss, Adam()), "phi_loss": {"of_each": w, "l2": l2}}

    def of_task(t: int) -> dict[str, Any]:
        own = [{k: v[t] for k, v in batch.items()} for batch in batches]
        return {**plain, "train_batches": own, "val_batch": {k: v[t] for k, v in val_batch.items()}}

    return marked, [of_task(t) for t in range(T)]


def expected(singles: list[dict[str, Any]], reduce: str = "mean") -> dict[str, Tensor]:
    results = [gimli.meta_gradient(**single).A_loss for single in singles]
    return {k: torch.stack([A[k] for A in results]).sum(0) / (T if reduce == "mean" else 1) for k in results[0]}


def agrees(A_loss: dict[str, Tensor], of_singles: dict[str, Tensor], bound: float = 1e-12) -> None:
    assert A_loss["of_each"].is_sparse
    for k, v in of_singles.items():
        found = A_loss[k]
        assert distance(found.to_dense() if found.is_sparse else found, v) <= bound


@every_schedule
def test_under_every_schedule(memory: Any) -> None:
    marked, singles = both()
    agrees(gimli.meta_gradient(**marked, tasks=T, memory=memory).A_loss, expected(singles))


@pytest.mark.parametrize("micro_batches", [None, 2, 3])
@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_in_chunks_and_micro_batches(reduce: str, chunk: int | None, micro_batches: int | None) -> None:
    marked, singles = both()
    result = gimli.meta_gradient(**marked, tasks=gimli.Tasks(T, reduce, chunk), micro_batches=micro_batches)
    agrees(result.A_loss, expected(singles, reduce))


def test_of_several_outer_losses() -> None:
    marked, singles = both(several)
    result = gimli.meta_gradient(**marked, tasks=T)
    assert result.A_loss["of_each"].shape == (2, N, 2)
    agrees(result.A_loss, expected(singles))


def test_where_tasks_cannot_be_vectorised(caplog: pytest.LogCaptureFixture) -> None:
    def branches(theta: Any, phi: Any, batch: Any) -> Tensor:
        return weighted(theta, phi, batch) * (2 if batch["x"].sum() > 0 else 1)

    def branches_densely(theta: Any, phi: Any, batch: Any) -> Tensor:
        return dense(theta, phi, batch) * (2 if batch["x"].sum() > 0 else 1)

    marked, singles = both()
    marked["problem"] = gimli.Problem(branches, val_loss, Adam())
    for single in singles:
        single["problem"] = gimli.Problem(branches_densely, val_loss, Adam())
    result = gimli.meta_gradient(**marked, tasks=T)
    assert "train_loss runs one task after the other" in said(caplog)
    agrees(result.A_loss, expected(singles))


def test_unroll_verify_and_a_killed_run(tmp_path: Path) -> None:
    marked, singles = both()
    of_singles = expected(singles)
    w = marked["phi_loss"]["of_each"].value.clone().requires_grad_()
    gimli.unroll(**{**marked, "phi_loss": {**marked["phi_loss"], "of_each": gimli.indexed(w)}}, tasks=T).backward()
    assert distance(w.grad, of_singles["of_each"]) < 1e-12
    assert gimli.verify(**marked, tasks=T).ok
    path = tmp_path / "run"
    found = until_through(lambda: gimli.meta_gradient(**marked, tasks=T, memory=Checkpoint(2), resume=path))
    agrees(found.A_loss, of_singles)


def on_ranks() -> dict[str, Tensor]:
    marked, _ = both()
    return {k: v.to_dense() for k, v in gimli.meta_gradient(**marked, tasks=T, mesh="tasks").A_loss.items()}


def test_over_processes(tmp_path: Path) -> None:
    first, second = results_on_ranks(2, on_ranks, directory=tmp_path)
    assert_identical(first, second)
    _, singles = both()
    for k, v in expected(singles).items():
        assert distance(first[k], v) < 1e-12


@pytest.mark.long
@problems.needs_compiler
def test_compiled() -> None:
    marked, singles = both()
    agrees(gimli.meta_gradient(**marked, tasks=T, compile=True).A_loss, expected(singles), 1e-10)


def test_rows_of_one_task_are_refused() -> None:
    marked, _ = both()
    w = marked["phi_loss"]["of_each"].value
    phi = {**marked["phi_loss"], "of_each": gimli.indexed(w, lambda batch: torch.arange(4))}
    with pytest.raises(ArgumentError, match=r"at inner step j = 0: expected a tensor with a leading dimension of 3"):
        gimli.meta_gradient(**{**marked, "phi_loss": phi}, tasks=T)


def test_parts_know_where_their_rows_stand() -> None:
    rows = Rows([torch.zeros(2, 3, 5), torch.zeros(2, 1, 5)], 1)
    assert rows.joined().shape == (2, 4, 5)
    assert rows.spans() == [(0, 3), (3, 4)]
