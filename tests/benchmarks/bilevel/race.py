"""All methods on one instance of a problem, an outer step of each in turn."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from gimli_core.errors import GimliError
from tests.benchmarks.bilevel import reference
from tests.benchmarks.bilevel.methods import METHODS, ours
from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors, descended, gradient, leaves


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


def race(problem: Bilevel, names: list[str], outer_steps: int, counted: bool = True) -> dict[str, Score]:
    """Every method's score on one instance: A B A B …, an outer step of each in turn. `counted`: with its products."""
    scores = {name: Score(losses=[[]]) for name in names}
    exact, minimum = reference.of_steps(problem), reference.of_minimum(problem)
    if "ours, budget" in names:
        load(problem, "ours, budget")
    runs = {name: METHODS[name][0](problem) for name in names}
    for k in range(outer_steps):
        for name, run in runs.items():
            score, start = scores[name], time.process_time()
            if score.refused:
                continue
            try:
                reached = next(run)
            except GimliError as refusal:
                score.refused = f"outer step {k}: {refusal}"
                continue
            if k > 0:  # the first one checks and measures
                score.seconds.append(time.process_time() - start)
            score.losses[0].append(judged(problem, reached))
            if k == 0 and reached.gradient is not None:
                score.of_steps.append(error(reached.gradient, exact))
                if minimum is not None:
                    score.of_minimum.append(error(reached.gradient, minimum))
    for name in (n for n in names if counted and not scores[n].refused):
        again = METHODS[name][0](problem)  # at a phi that it has been at: further on it may refuse
        next(again)  # checks and measures
        scores[name].gradients = flops(partial(next, again)) / of_a_gradient(problem)
    return scores


def joined(of_seeds: list[dict[str, Score]]) -> dict[str, Score]:
    """The scores of several instances as one; a method that refused one of them has refused."""
    scores = {name: Score() for name in of_seeds[0]}
    for seed, of_seed in enumerate(of_seeds):
        for name, part in of_seed.items():
            score = scores[name]
            score.of_steps += part.of_steps
            score.of_minimum += part.of_minimum
            score.losses += part.losses
            score.seconds += part.seconds
            score.gradients = score.gradients or part.gradients
            score.refused = score.refused or (f"seed {seed}, {part.refused}" if part.refused else "")
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
