"""mesh="data": one inner batch over ranks, against one process that has the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed

import gimli_core as gimli
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.processes.collectives import counting
from gimli_core.trees import tensors
from tests.processes.cases import RULES, Inner, call, inner, mean_square, part_of, same_bits, val_loss
from tests.processes.launching import results_on_ranks

J = 4
SCHEDULES = (None, RetainGraphs(), StoreStates(), Checkpoint(2), Checkpoint(1, gradients=True))


def parts(given: Inner, dim: int = 0) -> Inner:
    """What this rank is given."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    batches = [part_of(batch, rank, size, dim) for batch in given.batches]
    return given._replace(batches=batches, val_batch=part_of(given.val_batch, rank, size, dim))


def close(found: Any, expected: Any) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, equal_nan=True)


def rules_and_schedules() -> list[Any]:
    found = []
    for rule, phi_opt in RULES:
        problem = gimli.Problem(mean_square, val_loss, rule)
        for memory in SCHEDULES:
            with counting() as sent:
                result = call(problem, parts(inner(J)), phi_opt, memory=memory, mesh="data")
            found.append((result.state_dict(), sent))
    return found


def kinds() -> dict[str, dict[str, Any]]:
    """One call of each kind that a mesh meets; alone, where there is no group."""
    over = distributed.is_initialized()
    mesh, cut = ("data", parts) if over else (None, lambda given, dim=0: given)
    given, rule, learned = inner(J), RULES[1][0], RULES[1][1]
    problem = gimli.Problem(mean_square, val_loss, rule)
    two = gimli.Problem(mean_square, lambda *a: torch.stack([val_loss(*a), 2 * val_loss(*a)]), rule)
    found = {
        "first order": call(problem, cut(given), learned, approximation=gimli.FirstOrder(), mesh=mesh),
        "truncated": call(problem, cut(given), learned, approximation=gimli.Truncated(2), mesh=mesh),
        "losses on the way": call(problem, cut(given), learned, val_weights=torch.ones(J), mesh=mesh),
        "two outer losses": call(two, cut(given), learned, mesh=mesh),
        "micro-batches": call(problem, cut(given), learned, micro_batches=2, mesh=mesh),
        "tasks": call(problem, cut(inner(J, 2), 1), learned, tasks=2, mesh=mesh),
        "forward over reverse": call(problem, cut(given), learned, second_order="forward_over_reverse", mesh=mesh),
        "until": call(problem, cut(given), learned, until=lambda j, loss, theta, G: j == 3, mesh=mesh),
        "no val batch": call(
            gimli.Problem(mean_square, lambda t, p, b: (t["a"] ** 2).sum(), rule),
            cut(given)._replace(val_batch=None),
            learned,
            mesh=mesh,
        ),
    }
    loss = gimli.unroll(problem, *cut(given)[:3], phi_opt={"lr": torch.tensor(0.05)}, phi_loss=tied(given), mesh=mesh)
    loss.backward()
    tried = {name: result.state_dict() for name, result in found.items()}
    return {**tried, "unroll": {"grad": TIED["log_l2"].grad, "loss": loss.detach()}}


TIED: dict[str, torch.Tensor] = {}


def tied(given: Inner) -> dict[str, torch.Tensor]:
    TIED.update({k: v.clone().requires_grad_() for k, v in given.phi_loss.items()})
    return TIED


def test_every_rule_and_schedule_agrees_with_the_whole_batch_in_one_process(tmp_path: Path) -> None:
    every = results_on_ranks(3, rules_and_schedules, directory=tmp_path)
    for i, (rule, phi_opt) in enumerate(RULES):
        expected = call(gimli.Problem(mean_square, val_loss, rule), inner(J), phi_opt).state_dict()
        first = every[0][i * len(SCHEDULES)][0]
        close(first, expected)
        for rank in every:
            for result, _ in rank[i * len(SCHEDULES) : (i + 1) * len(SCHEDULES)]:
                same_bits(result, first)  # of every rank and schedule


def test_messages_are_exactly_the_ones_stated(tmp_path: Path) -> None:
    for rank in results_on_ranks(2, rules_and_schedules, directory=tmp_path):
        for (_, sent), memory in zip(rank, SCHEDULES * 3, strict=True):
            reduced = [m.what.partition(",")[0] for m in sent if m.operation == "all_reduce"]
            replays = 0 if memory in (None, SCHEDULES[1]) else reduced.count("line 5") - J
            assert reduced.count("line 5") == J + replays
            assert reduced.count("lines 13-14") == J
            assert reduced.count("lines 8-9") == 1


def test_every_kind_of_call_agrees_with_one_process(tmp_path: Path) -> None:
    every = results_on_ranks(2, kinds, directory=tmp_path)
    alone = kinds()
    for found in every:
        for name, expected in alone.items():
            close(found[name], expected)
