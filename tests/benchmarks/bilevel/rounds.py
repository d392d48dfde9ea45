"""The races of all problems and seeds, and each method's peak, every one in a process of its own, some at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.bilevel.methods import METHODS
from tests.benchmarks.bilevel.problems import PROBLEMS
from tests.benchmarks.bilevel.race import Score, joined, load, race
from tests.benchmarks.measure import peak_above_base


@dataclass(frozen=True)
class Rounds:
    """What is raced, and how."""

    methods: list[str]
    outer_steps: int
    seeds: int
    data: Path
    at_once: int  # processes, of a thread each

    def scores(self, problems: list[str]) -> Iterator[tuple[str, dict[str, Score]]]:
        """(problem, its scores), in order, each when it is there; the next problem is raced meanwhile."""
        context = multiprocessing.get_context("forkserver")  # a fresh process each, whose imports are made once
        context.set_forkserver_preload([__name__, "torch._dynamo", *{METHODS[name][1] for name in self.methods}])
        with ProcessPoolExecutor(self.at_once, mp_context=context, max_tasks_per_child=1) as pool:
            races: dict[str, list[Future[dict[str, Score]]]] = {}
            for i, problem in enumerate(problems):
                for ahead in problems[i : i + 2]:
                    if ahead not in races:
                        races[ahead] = [pool.submit(self.of_seed, ahead, seed) for seed in range(self.seeds)]
                scores = joined([_result(f"a race of {problem}", of_seed) for of_seed in races.pop(problem)])
                able = [name for name, score in scores.items() if not score.refused]
                peaks = {name: pool.submit(self.peak, problem, name) for name in able}
                for name, peak in peaks.items():
                    scores[name].peak = _result(f"{name} on {problem}", peak)
                yield problem, scores

    def of_seed(self, problem: str, seed: int) -> dict[str, Score]:
        torch.set_num_threads(1)
        return race(PROBLEMS[problem](seed, self.data), self.methods, self.outer_steps, counted=seed == 0)

    def peak(self, problem: str, name: str) -> int:
        """Bytes that one outer step adds at its highest to what the process held after one of two inner steps."""
        torch.set_num_threads(1)
        instance, method = PROBLEMS[problem](0, self.data), METHODS[name][0]

        def prepare() -> Callable[[], object]:
            load(instance, name)
            return lambda: next(method(instance))

        return peak_above_base(prepare)


def _result(what: str, future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RuntimeError(f"{what}: a process ended without an answer") from None
