"""The engine, as a user calls it: compiled, and with nothing compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import gimli_core as gimli
from tests.benchmarks.speed.peers_torch import named
from tests.benchmarks.speed.workloads import Workload

OPTIMIZERS = {"sgd": gimli.optimizers.SGD, "adam": gimli.optimizers.Adam, "adamw": gimli.optimizers.AdamW}


def arguments(work: Workload) -> dict[str, Any]:
    """What `gimli.meta_gradient` is called with."""
    optimizer = OPTIMIZERS[work.rule]() if "lr" in work.wanted else OPTIMIZERS[work.rule](lr=work.lr)
    return {
        "problem": gimli.Problem(work.train_loss, work.val_loss, optimizer, modules=[work.net]),
        "theta_0": work.theta_0,
        "train_batches": work.batch,
        "val_batch": work.val,
        "steps": work.steps,
        "phi_opt": {"lr": work.lr} if "lr" in work.wanted else None,
        "phi_loss": work.phi_loss or None,
        **({"tasks": gimli.Tasks(work.tasks, "sum")} if work.tasks else {}),
    }


def prepare(work: Workload, **options: Any) -> Callable[[], dict[str, Tensor]]:
    """The meta-gradient of the workload, as `named` in peers_torch names it."""
    given = arguments(work)

    def run() -> dict[str, Tensor]:
        result = gimli.meta_gradient(**given, **options)
        found: dict[str, Any] = {"theta_0": result.B_0, "phi_loss": result.A_loss, "lr": result.A_opt.get("lr")}
        return named({k: found[k] for k in work.wanted})

    return run
