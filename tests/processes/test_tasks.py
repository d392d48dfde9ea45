"""mesh="tasks": the same bits for any number of ranks, on every rank, and as the engine alone has them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import gimli_core as gimli
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import Adam
from gimli_core.processes.collectives import counting
from tests.processes.cases import RULES, call, inner, mean_square, same_bits, val_loss
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
