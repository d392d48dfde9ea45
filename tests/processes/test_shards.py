"""theta, s, B and S over ranks, against one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

import gimli_core as gimli
from gimli_core.errors import GimliError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, Schedule, StoreStates
from gimli_core.optimizers import LAMB, SGD, Adafactor, Adagrad, Adam, ClipNorm, EMA, MaskedDecay, Muon, Optimizer
from gimli_core.processes.collectives import Collective, counting
from gimli_core.processes.mesh import Ranks
from gimli_core.processes.pieces import Pieces
from gimli_core.transforms.rule_on_shards import by_element
from tests.compare import agree
from tests.problems import PROBLEMS, RULES, STARTS, Rule, arguments, network_with_dropout, tanh_network
from tests.processes.launching import results_on_ranks

SCHEDULES: tuple[Schedule, ...] = (RetainGraphs(), StoreStates(), Checkpoint(2, gradients=True), Budget("1GB"))


def run(made: dict[str, Any], **more: Any) -> gimli.MetaGradient:
    torch.manual_seed(3)
    return gimli.meta_gradient(**made, **more)


def compared(made: dict[str, Any], rtol: float = 1e-12, **more: Any) -> None:
    """Raise unless shards give what one process gives."""
    agree(run(made, mesh="shard", **more), run(made, compile=False, **more), rtol=rtol, atol=rtol / 100)


def every_schedule() -> int:
    count = 0
    for rule in RULES:
        if rule.name in ("momentum", "adam", "adagrad"):
            for memory in SCHEDULES:
                compared(arguments(rule, network_with_dropout, "cold"), memory=memory)
                count += 1
    return count


def every_row(names: tuple[str, ...]) -> int:
    """Every rule, problem and start of the contract, by two schedules."""
    rows = [
        (rule, problem, start) for rule in RULES if rule.name in names for problem in PROBLEMS for start in STARTS
    ]
    for rule, problem, start in rows:
        for memory in (RetainGraphs(), Checkpoint(2)):
            compared(arguments(rule, problem, start), rtol=1e-11, memory=memory)
    return len(rows)


def test_shards_give_what_one_process_gives(tmp_path: Path) -> None:
    assert results_on_ranks(2, every_schedule, directory=tmp_path) == [12, 12]


@pytest.mark.long
@pytest.mark.parametrize("part", range(6))
def test_every_rule_in_three_shards(part: int, tmp_path: Path) -> None:
    names = tuple(rule.name for rule in RULES)[part::6]
    count = len(names) * len(PROBLEMS) * len(STARTS)
    assert results_on_ranks(3, every_row, names, directory=tmp_path, timeout=100) == [count] * 3
