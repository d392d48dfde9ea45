"""Compiled steps of ranks that share a batch, or theta: the numbers of one process, and the messages of eager steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import gimli_core as gimli
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import SGD, Adagrad, Adam, ClipNorm, DerivedOptimizer, hyperparameter
from gimli_core.processes.collectives import counting
from tests.processes.cases import Inner, call, inner, mean_square, part_of, same_bits, to_rounding, val_loss
from tests.processes.launching import results_on_ranks

J = 4
SCHEDULES = (None, RetainGraphs(), StoreStates(), Checkpoint(1, gradients=True))


def two_losses(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
    return torch.stack([val_loss(theta, phi, batch), 2 * mean_square(theta, phi, batch)])


@dataclass(frozen=True, eq=False)
class ByLoss(DerivedOptimizer):
    """theta' = theta - lr tanh(ell) G: g_j comes late, beside V_j."""

    sees = ("loss",)
    lr: Any = hyperparameter(0.1)

    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        moved = {k: theta[k] - hyper[k]["lr"] * torch.tanh(hyper[k]["loss"]) * G[k] for k in theta}
        return moved, {"step": state["step"] + 1}


class Case:
    """A call whose third batch is smaller than the others, on ranks or in one process."""

    def __init__(self, mesh: str, rule: Any, learned: dict[str, float], outer: Any = val_loss, **more: Any) -> None:
        self.mesh, self.learned, self.more = mesh, learned, more
        self.problem = gimli.Problem(mean_square, outer, rule)
        given, dim = inner(J, *([more["tasks"]] if "tasks" in more else [])), self._examples
        self.given = given._replace(batches=[part_of(b, 0, 1 + (j == 2), dim) for j, b in enumerate(given.batches)])

    @property
    def _examples(self) -> int:
        return 1 if "tasks" in self.more else 0

    def part(self) -> Inner:
        given, dim = self.given, self._examples
        if "data" not in self.mesh:
            return given
        rank, size = distributed.get_rank(), distributed.get_world_size()
        batches = [part_of(batch, rank, size, dim) for batch in given.batches]
        return given._replace(batches=batches, val_batch=part_of(given.val_batch, rank, size, dim))

    def alone(self) -> Any:
        return call(self.problem, self.given, self.learned, compile=False, **self.more).state_dict()

    def over_ranks(self, compile: Any, memory: Any = None) -> tuple[Any, list[Any]]:
        with counting() as sent:
            result = call(
                self.problem, self.part(), self.learned, mesh=self.mesh, compile=compile, memory=memory, **self.more
            )
        return result.state_dict(), sent


def cases() -> dict[str, Case]:
    return {
        "data": Case("data", Adam(), {"lr": 0.05}),
        "tasks, losses": Case("data", SGD(), {"lr": 0.1}, two_losses, tasks=2, val_weights=torch.ones(J)),
        "shard, gathers": Case("shard", ClipNorm(SGD(momentum=0.5), 0.3), {"lr": 0.1, "momentum": 0.5}),
        "a rule that sees the loss": Case("data", ByLoss(), {"lr": 0.1}),
        "data+shard": Case("data+shard", Adagrad(), {"lr": 0.2}),
    }


def runs(name: str) -> list[tuple[Any, list[Any], list[Any]]]:
    """Of each schedule the compiled result, what was sent for it, and for an eager run."""
    case, found = cases()[name], []
    for memory in SCHEDULES if name == "data" else SCHEDULES[:1]:
        case.over_ranks("steps", memory)  # the first call asks for more
        result, sent = case.over_ranks("steps", memory)
        _, eager = case.over_ranks(False, memory)
        asked = ("compile", "what all ranks must have")
        assert [m.what for m in sent if m.operation == "all_gather_object" and m.what in asked] == list(asked)
        found.append((result, [m[:3] for m in sent if m.what not in asked], [m[:3] for m in eager]))
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", list(cases()))
def test_compiled_ranks_agree_with_one_process_and_send_what_eager_ones_do(name: str, tmp_path: Path) -> None:
    ranks = results_on_ranks(2, runs, name, directory=tmp_path, timeout=300.0)
    case = cases()[name]
    expected = case.alone()
    for found in ranks:
        for result, sent, eager in found:
            to_rounding(result, expected)
            same_bits(result, ranks[0][0][0])  # of every rank and schedule
            assert sent == eager


class Notices(logging.Handler):
    """The lines that are told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def told_of_compiling(mesh: str) -> list[str]:
    notices, logger = Notices(), logging.getLogger("gimli_core")
    logger.addHandler(notices)
    try:
        case = cases()["data"] if mesh == "data" else Case("tasks", SGD(), {"lr": 0.1}, tasks=2)
        case.over_ranks(True)
    finally:
        logger.removeHandler(notices)
    return notices.lines


@pytest.mark.long
@pytest.mark.parametrize("mesh", ["data", "tasks"])
def test_one_rank_tells_how_far_all_are(mesh: str, tmp_path: Path) -> None:
    first, second = results_on_ranks(2, told_of_compiling, mesh, directory=tmp_path, timeout=300.0)
    for word in ("compiling", "traced", "compiled in"):
        assert any(word in line for line in first)
        assert not any(word in line for line in second)


def uncompiled_on_one(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
    if distributed.is_initialized() and distributed.get_rank() == 1:
        torch._dynamo.graph_break()
    return mean_square(theta, phi, batch)


def of_one_that_cannot() -> tuple[Any, Any]:
    case = cases()["data"]
    case.problem = gimli.Problem(uncompiled_on_one, val_loss, Adam())
    return case.over_ranks(True)[0], case.over_ranks(False)[0]


@pytest.mark.long
def test_where_one_rank_cannot_compile_all_run_eager(tmp_path: Path) -> None:
    for compiled, eager in results_on_ranks(2, of_one_that_cannot, directory=tmp_path, timeout=300.0):
        same_bits(compiled, eager)


def changed_in_place() -> str:
    case = cases()["data"]
    part = case.part()
    run = gimli.unroll(
        case.problem, *part[:3], phi_opt={"lr": torch.tensor(0.1, requires_grad=True)}, phi_loss=part.phi_loss,
        mesh="data", compile=True,
    )  # fmt: skip
    part.batches[1][0].add_(1)
    with pytest.raises(RuntimeError, match="the batch of inner step j = 1 has been changed in place") as error:
        run.backward()
    return str(error.value)


@pytest.mark.long
def test_a_batch_that_is_changed_before_the_sweep_is_refused(tmp_path: Path) -> None:
    assert len(set(results_on_ranks(2, changed_in_place, directory=tmp_path, timeout=300.0))) == 1
