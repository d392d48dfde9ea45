"""Where the time of one engine goes, by torch.profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile, record_function

from gimli_core.optimizers.interface import Optimizer
from tests.benchmarks.speed.floor import PRODUCTS

MARKS = {"step": "optimizer step", "pullback": "pullback"}
GROUPS = ("matmul, convolution", "compiled code", "elementwise and other operations", *MARKS.values())
COMPILED = ("fused", "inductor", "CompiledFxGraph")
REST = "Python and what it calls outside operations"


@contextmanager
def marked(kind: type[Optimizer]) -> Iterator[None]:
    """Within it, the profiler sees where the optimizer's step and pullback begin and end."""

    def under(name: str) -> Callable[..., Any]:
        plain = getattr(kind, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(MARKS[name]):
                return plain(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for name in MARKS:
            patches.enter_context(mock.patch.object(kind, name, under(name)))
        yield


def group_of(event: Any) -> str:
    """The optimizer's, if it stands under one of its marks; otherwise by the operation's name."""
    above = event
    while above is not None:
        if above.name in MARKS.values():
            return above.name
        above = above.cpu_parent
    name = event.name.removeprefix("aten::")
    if name in PRODUCTS or "mkldnn" in name or "conv" in name:
        return GROUPS[0]
    return GROUPS[1] if any(mark in name for mark in COMPILED) else GROUPS[2]


def shares(run: Callable[[], Any], eager: type[Optimizer] | None, runs: int = 3) -> dict[str, float]:
    """Seconds a run in each group of operations, and in the rest of its time.

    The step and the pullback of the optimizer are told apart if it is given, which is for `eager` runs: compiled
    code has them in its fused kernels, and where it is called from C++, as small steps are, its products too.
    """
    run()
    with marked(eager) if eager else nullcontext(), profile(activities=[ProfilerActivity.CPU]) as watched:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        wall = (time.perf_counter() - start) / runs
    spent = dict.fromkeys(GROUPS, 0.0)
    for event in watched.events():
        spent[group_of(event)] += event.self_cpu_time_total / 1e6 / runs
    return {**spent, REST: wall - sum(spent.values())}
