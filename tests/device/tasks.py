"""A meta-batch in one vectorised run is the mean of its tasks' runs; compiled it is the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import gimli_core as gimli
from tests.compare import distance
from tests.device.check import Check, Where
from tests.problems import tanh_network

TASKS = 4


def checks(where: Where) -> Iterator[Check]:
    for name, optimizer in (("SGD", gimli.optimizers.SGD(lr=0.1)), ("Adam", gimli.optimizers.Adam(lr=0.1))):
        torch.manual_seed(0)
        made = tanh_network(optimizer, TASKS)
        made = {k: v if k == "problem" else where.put(v) for k, v in made.items()}
        eager = gimli.meta_gradient(**made, compile=False)
        alone = [gimli.meta_gradient(**of_task(made, i), compile=False) for i in range(TASKS)]
        yield compared(f"{name}, {TASKS} tasks at once", eager, [r.B_0 for r in alone])
        if not where.quick:
            yield compared(f"{name}, compiled", gimli.meta_gradient(**made, compile=True), [eager.B_0])


def of_task(made: dict[str, Any], i: int) -> dict[str, Any]:
    train, val = made["train_batches"], made["val_batch"]
    alone = {"train_batches": [tuple(t[i] for t in b) for b in train], "val_batch": tuple(t[i] for t in val)}
    return {**{k: v for k, v in made.items() if k != "tasks"}, **alone}


def compared(name: str, result: gimli.MetaGradient, parts: list[dict[str, torch.Tensor]]) -> Check:
    """B_0 against the mean of the parts, in float64: sums of a hundred terms."""
    mean = {k: torch.stack([part[k] for part in parts]).mean(0) for k in result.B_0}
    worst = max(distance(result.B_0[k], v) for k, v in mean.items())
    return Check(name, worst < 1e-12, f"largest difference {worst:.1e}, allowed 1e-12")
