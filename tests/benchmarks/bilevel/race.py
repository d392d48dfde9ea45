"""All methods on one problem, an outer step of each in turn; and the peak of each in a process of its own."""

from __future__ import annotations

import importlib.util
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from gimli_core.errors import GimliError
from tests.benchmarks.bilevel import reference
from tests.benchmarks.bilevel.methods import METHODS, ours
from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors, descended, gradient, leaves
from tests.benchmarks.bilevel.problems import PROBLEMS
from tests.benchmarks.measure import peak_above_base


@dataclass
class Score:
    """One method on one problem; one entry a seed, or one an outer step."""

    of_steps: list[float] = field(default_factory=list)  # error to the gradient of J steps, by seed
    of_minimum: list[float] = field(default_factory=list)  # to that at the inner minimum, where there is one
    losses: list[list[float]] = field(default_factory=list)  # [seed][outer step]
    seconds: list[float] = field(default_factory=list)  # of the processor, an outer step, the first ones left out
    gradients: float = 0.0  # an outer step's products, in those of one gradient of the inner loss
    peak: int | None = None
    refused: str = ""  # what a method said that would not go on


def installed(names: list[str]) -> list[str]:
    """Those of the methods whose package is there."""
    missing = {n: METHODS[n][1] for n in names if importlib.util.find_spec(METHODS[n][1]) is None}
    for name, package in missing.items():
        print(f"{name}: {package} is not installed (pip install 'gimli_core[bench]')", flush=True)
    return [name for name in names if name not in missing]


def error(found: Tensors, exact: Tensors) -> float:
    """‖found − exact‖ / ‖exact‖, in float64."""
    apart = torch.stack([(found[k].double() - v).norm() for k, v in exact.items()]).norm()
    return float(apart / torch.stack([v.norm() for v in exact.values()]).norm())


def flops(run: Callable[[], object]) -> int:
    """Of its matrix products and convolutions, counted as they run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def of_a_gradient(problem: Bilevel) -> int:
    """What the gradient of one inner step takes."""
    theta = leaves(problem.start(problem.phi_0))
    return flops(lambda: gradient(problem.ell_j(0, theta, problem.phi_0), theta))


def race(make: Callable[[int], Bilevel], names: list[str], outer_steps: int, seeds: int) -> dict[str, Score]:
    """Every method's score: A B A B …, an outer step of each in turn, on every seed's instance."""
    scores = {name: Score() for name in names}
    for seed in range(seeds):
        problem = make(seed)
        exact, minimum = reference.of_steps(problem), reference.of_minimum(problem)
        if seed == 0 and "ours, budget" in names:
            load(problem, "ours, budget")
        runs = {name: METHODS[name][0](problem) for name in names}
        for score in scores.values():
            score.losses.append([])
        for k in range(outer_steps):
            for name, run in runs.items():
                score, start = scores[name], time.process_time()
                if score.refused:
                    continue
                try:
                    reached = next(run)
                except GimliError as refusal:
                    score.refused = f"seed {seed}, outer step {k}: {refusal}"
                    continue
                if k > 0:  # the first one checks and measures
                    score.seconds.append(time.process_time() - start)
                score.losses[-1].append(judged(problem, reached))
                if k == 0 and reached.gradient is not None:
                    score.of_steps.append(error(reached.gradient, exact))
                    if minimum is not None:
                        score.of_minimum.append(error(reached.gradient, minimum))
        if seed == 0:
            for name in (n for n in names if not scores[n].refused):
                again = METHODS[name][0](problem)  # at a phi that it has been at: further on it may refuse
                next(again)  # checks and measures
                scores[name].gradients = flops(partial(next, again)) / of_a_gradient(problem)
    return scores


def load(problem: Bilevel, name: str) -> None:
    """Two steps, with which a process loads what a method needs: a budget counts what its call is the first to load."""
    first = ours.roomy if name == "ours, budget" else METHODS[name][0]
    next(first(replace(problem, steps=2)))


def judged(problem: Bilevel, reached: Reached) -> float:
    """L(theta_J(phi), phi), by which all are judged, whatever theta a method has itself."""
    if reached.loss is not None:
        return reached.loss
    return float(problem.L(descended(problem, reached.phi), reached.phi).detach())


def peaks(problem: str, names: list[str], data: Path) -> dict[str, int]:
    """Bytes that one outer step adds at its highest to what the process held after one of two inner steps."""
    context = multiprocessing.get_context("forkserver")  # a fresh process each, whose imports are made once
    context.set_forkserver_preload([__name__])
    found = {}
    for name in names:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=serve_peak, args=(there, problem, name, data), daemon=True)
        process.start()
        there.close()
        try:
            found[name] = here.recv()
        except EOFError:
            raise RuntimeError(f"{name} on {problem}: its process ended without an answer") from None
        process.join()
    return found


def serve_peak(pipe: multiprocessing.connection.Connection, problem: str, name: str, data: Path) -> None:
    torch.set_num_threads(1)
    instance, method = PROBLEMS[problem](0, data), METHODS[name][0]

    def prepare() -> Callable[[], object]:
        load(instance, name)
        return lambda: next(method(instance))

    pipe.send(peak_above_base(prepare))
