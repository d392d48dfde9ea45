"""Every engine by name, prepared in the process that asks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.measure import beyond_the_second
from tests.benchmarks.speed import floor
from tests.benchmarks.speed.workloads import Workload

# What is behind each name, and the package that it needs.
ENGINES = {
    "ours": ("gimli_core, compiled", "torch"),
    "whole": ("gimli_core, the whole run compiled as one", "torch"),
    "eager": ("gimli_core, nothing compiled", "torch"),
    "autograd": ("autograd through a plain unroll", "torch"),
    "func": ("torch.func, vmap over tasks", "torch"),
    "higher": ("higher, a loop over tasks", "higher"),
    "torchopt": ("torchopt, a loop over tasks", "torchopt"),
    "jax": ("JAX jit + vmap + scan", "jax"),
    "jax_checkpoint": ("JAX with jax.checkpoint", "jax"),
    "floor": ("the matrix products of eager alone", "torch"),
}
COMPILE = {"ours": True, "whole": "whole", "eager": False, "floor": False}


def prepare(engine: str, work: Workload) -> tuple[Callable[[], Any], Callable[[Any], Any], float]:
    """A run that returns when its results are there, what makes tensors by name of them, and the seconds of compiling.

    Compiling counts what the first call takes beyond the second.

    Raises:
        LookupError: the package is not installed, or lacks what the workload needs.
    """
    package = ENGINES[engine][1]
    if importlib.util.find_spec(package) is None:
        raise LookupError(f"{package} is not installed (pip install 'gimli_core[bench]')")
    if package == "jax":
        from tests.benchmarks.speed import peers_jax

        run, seconds = peers_jax.prepare(work, checkpoint=engine == "jax_checkpoint")
        run()
        return run, peers_jax.tensors, seconds
    if engine in COMPILE:
        from tests.benchmarks.speed import ours

        run = ours.prepare(work, compile=COMPILE[engine])
        finish = finished(floor.products(run) if engine == "floor" else run, work)
    else:
        from tests.benchmarks.speed import peers_torch

        finish = finished(getattr(peers_torch, engine)(work), work)
    compiling = max(beyond_the_second(finish), 0.0)
    return finish, lambda found: {k: v.detach() for k, v in (found or {}).items()}, compiling


def finished(run: Callable[[], Any], work: Workload) -> Callable[[], Any]:
    """The run, which returns when the device is done with it."""
    if work.val[0].device.type != "cuda":
        return run

    def synchronised() -> Any:
        found = run()
        torch.cuda.synchronize()
        return found

    return synchronised
