"""mesh="tasks": the same bits for any number of ranks, on every rank, and as the engine alone has them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import Adam
from gimli_core.processes.collectives import counting
from gimli_core.processes.mesh import Mesh, Ranks
from gimli_core.trees import tensors
from tests.processes.cases import RULES, call, inner, mean_square, part_of, same_bits, val_loss
from tests.processes.launching import results_on_ranks

T, J = 4, 3


def every_case(mesh: str | None, chunk: int | None = None) -> list[dict[str, Any]]:
    """Every rule with and without dropout, and one of them under every schedule."""
    results = []
    given = inner(J, T)
    for dropout in (0.0, 0.5):
        for rule, phi_opt in RULES:
            problem = gimli.Problem(partial(mean_square, dropout=dropout), val_loss, rule)
            for memory in (None, RetainGraphs(), StoreStates(), Checkpoint(2)) if isinstance(rule, Adam) else (None,):
                torch.manual_seed(7)
                tasks = gimli.Tasks(T, chunk=chunk)
                results.append(call(problem, given, phi_opt, tasks=tasks, memory=memory, mesh=mesh).state_dict())
    return results


def cases_and_messages(chunk: int | None) -> tuple[Any, ...]:
    with counting() as sent:
        results = every_case("tasks", chunk)
    return results, [message.operation for message in sent]


def test_any_number_of_ranks_gives_the_same_bits_on_every_rank(tmp_path: Path) -> None:
    first = None
    for size in (1, 2, 3):
        for results, messages in results_on_ranks(size, cases_and_messages, None, directory=tmp_path / str(size)):
            assert messages == [*["all_gather_object"] * 3, "all_gather"] * len(results)
            first = first or results
            same_bits(results, first)


def test_without_dropout_it_is_what_one_process_computes(tmp_path: Path) -> None:
    (ranks, _), *_ = results_on_ranks(2, cases_and_messages, 2, directory=tmp_path)
    alone = every_case(None, 2)
    half = len(alone) // 2
    same_bits(ranks[:half], alone[:half])


def tied() -> dict[str, Any]:
    """What `unroll` and an outer loop's estimator say; over ranks, or of the same chunks in one process."""
    mesh = "tasks" if distributed.is_initialized() else None
    given, rule = inner(J, T), RULES[1][0]
    problem = gimli.Problem(mean_square, val_loss, rule)
    log_lr, log_l2 = torch.tensor(-3.0).requires_grad_(), given.phi_loss["log_l2"].clone().requires_grad_()
    start = {k: v.clone().requires_grad_() for k, v in given.theta_0.items()}
    more: dict[str, Any] = {"tasks": gimli.Tasks(T, reduce="sum", chunk=1), "mesh": mesh}
    arguments = (problem, start, given.batches, given.val_batch)
    loss = gimli.unroll(*arguments, phi_opt={"lr": log_lr.exp()}, phi_loss={"log_l2": log_l2}, **more)
    loss.backward()
    with torch.no_grad():
        alone = gimli.unroll(*arguments, phi_opt={"lr": log_lr.exp()}, phi_loss={"log_l2": log_l2}, **more)
    phi = {"log_lr": torch.tensor(-3.0).requires_grad_()}

    def of(phi: Any, drawn: Any) -> dict[str, Any]:
        return {
            "theta_0": given.theta_0,
            "train_batches": given.batches,
            "val_batch": given.val_batch,
            "phi_opt": {"lr": phi["log_lr"].exp()},
            "phi_loss": given.phi_loss,
        }

    estimated = gimli.Unrolled(problem, phi, of, **more)(None)
    vector = gimli.Problem(mean_square, lambda *a: torch.stack([val_loss(*a), 2 * val_loss(*a)]), rule)
    two = call(vector, given, RULES[1][1], **more)
    return {
        "loss": loss.detach(),
        "without gradients": alone,
        "grads": [log_lr.grad, log_l2.grad, *(v.grad for v in start.values())],
        "estimator": estimated.A,
        "two": two.state_dict(),
    }


def test_unroll_and_an_estimator_have_their_gradients_on_every_rank(tmp_path: Path) -> None:
    expected = tied()
    for found in results_on_ranks(2, tied, directory=tmp_path):
        same_bits(found, expected)


def of_both() -> dict[str, Any]:
    """Two ranks of tasks by two of data."""
    given, over = inner(J, T), distributed.is_initialized()
    mesh: Any = None
    if over:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("tasks", "data"))
        r = mesh.get_local_rank("data")
        given = given._replace(
            batches=[part_of(batch, r, 2, 1) for batch in given.batches], val_batch=part_of(given.val_batch, r, 2, 1)
        )
    problem = gimli.Problem(mean_square, val_loss, RULES[1][0])
    return call(problem, given, RULES[1][1], tasks=gimli.Tasks(T, chunk=1), mesh=mesh).state_dict()


def test_tasks_and_data_together_agree_with_one_process(tmp_path: Path) -> None:
    expected = of_both()
    every = results_on_ranks(4, of_both, directory=tmp_path)
    for found in every:
        same_bits(found, every[0])
        for a, b in zip(tensors(found), tensors(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, equal_nan=True)


def compiled() -> Any:
    problem = gimli.Problem(mean_square, val_loss, RULES[1][0])
    given = inner(J, T)
    more: dict[str, Any] = {"tasks": T, "mesh": "tasks"}
    return [call(problem, given, RULES[1][1], compile=choice, **more).state_dict() for choice in ("steps", False)]


@pytest.mark.long
def test_tasks_are_compiled_if_that_is_asked_for(tmp_path: Path) -> None:
    (one, eager), *_ = results_on_ranks(1, compiled, directory=tmp_path / "1", timeout=200.0)
    for found, again in results_on_ranks(2, compiled, directory=tmp_path / "2", timeout=200.0):
        same_bits(found, one)
        same_bits(again, eager)
        for a, b in zip(tensors(found), tensors(eager), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


def stupid() -> dict[str, str]:
    """Every rank asks for what cannot be; the group is of use afterwards."""
    problem, given = gimli.Problem(mean_square, val_loss, RULES[0][0]), inner(J, T)
    unknown = init_device_mesh("cpu", (2,), mesh_dim_names=("pipeline",))
    nameless = init_device_mesh("cpu", (2,))
    ranks = Ranks("data", distributed.group.WORLD, distributed.get_rank(), 2, frozenset({"cuda"}))
    works: dict[str, dict[str, Any]] = {
        "no tasks": {"mesh": "tasks"},
        "unknown": {"mesh": unknown},
        "nameless": {"mesh": nameless},
        "a number": {"mesh": 2},
        "device": {"mesh": Mesh(data=ranks)},
        "path": {"mesh": "tasks", "tasks": T, "resume": "/dev/null/run"},
        "well": {"mesh": "tasks", "tasks": T},
        "fewer tasks than ranks": {"mesh": "tasks", "tasks": 1},
    }
    told = {}
    for name, more in works.items():
        try:
            call(problem, inner(J, 1) if more.get("tasks") == 1 else given, RULES[0][1], **more)
            told[name] = "nothing"
        except ArgumentError as error:
            told[name] = str(error)
    return told


def test_what_cannot_be_is_refused_on_every_rank_before_any_work(tmp_path: Path) -> None:
    for told in results_on_ranks(2, stupid, directory=tmp_path):
        assert told["no tasks"].startswith('tasks: expected tasks=T beside a mesh of "tasks"; got None')
        assert "got 'pipeline'" in told["unknown"]
        assert "a mesh whose dimensions have no names" in told["nameless"]
        assert "got int" in told["a number"]
        assert told["device"].startswith("mesh: expected one for tensors on cpu, as theta_0 is; got one for 'cuda'")
        assert told["path"].startswith("resume: expected a directory that can be written to")
        assert told["well"] == told["fewer tasks than ranks"] == "nothing"
