"""What every optimizer owes, on every problem, from every start, under every memory schedule, in every dtype."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import gimli_core as gimli
from gimli_core.memory import Budget
from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from tests.compare import distance, entries, flat_results, identical, largest, rounding_bounds
from tests.problems import (
    NUMBERS,
    SCHEDULES,
    STARTS,
    Rule,
    arguments,
    every_problem,
    every_rule,
    question,
)

every_start = pytest.mark.parametrize("start", STARTS)


@every_rule
@every_problem
@every_start
def test_engine_equals_autograd(rule: Rule, problem: Any, start: str) -> None:
    """dL/d(every continuous hyperparameter, phi_loss, theta_0, a warm s_0) and the trajectory, in float64."""
    made = arguments(rule, problem, start)
    torch.manual_seed(2)
    result = gimli.meta_gradient(**made)
    torch.manual_seed(2)
    asked = question(made)
    oracle = autograd_gradient(asked, asked.environment())
    assert distance(result.val_loss, oracle.loss) < 1e-13
    found = entries(result, oracle.gradient)
    assert {key[0] for key in found} >= {"A_opt", "A_loss", "B_0"}
    # Zeros would say little. (A slot of a single element may be 0: a running maximum is either kept or not.)
    moving = [key for key, g in oracle.gradient.items() if g.numel() > 1 or (g.numel() and key[0] != "S_0")]
    assert rule.flat or all(bool(oracle.gradient[key].any()) for key in moving)
    floor = {part: 1e-5 * largest(oracle.gradient, part) for part in ("S_0", "A_opt", "A_loss", "B_0")}
    if rule.name.startswith("lamb"):
        # A single element moves by its own length whatever s is: S is 0, and autograd's sum cancels to a few eps.
        floor["S_0"] *= 100
    worst = {key: distance(found[key], expected, floor[key[0]]) for key, expected in oracle.gradient.items()}
    assert max(worst.values()) < 1e-11, worst


@every_rule
@every_problem
@every_start
def test_schedules_agree_to_the_bit(rule: Rule, problem: Any, start: str) -> None:
    made = arguments(rule, problem, start)
    results = []
    for schedule in (*SCHEDULES, Budget(gimli.plan(**made).least)):
        torch.manual_seed(2)
        results.append((flat_results(gimli.meta_gradient(**made, memory=schedule)), torch.get_rng_state()))
    first, generator = results[0]
    for other, generator_after in results[1:]:
        for name, value in first.items():
            assert identical(value, other[name]), name
        assert torch.equal(generator, generator_after)


@every_rule
@every_problem
def test_float32(rule: Rule, problem: Any) -> None:
    """float32 stays float32, and is as near to float64 as its rounding allows."""
    double, single = arguments(rule, problem, "cold"), arguments(rule, problem, "cold", torch.float32)
    torch.manual_seed(2)
    result = gimli.meta_gradient(**single)
    slots = [held for slot, held in result.state_J.items() if slot not in ("step", *NUMBERS)]
    for tensors in (result.B_0, result.theta_J, result.A_loss, *slots):
        assert {t.dtype for t in tensors.values()} == {torch.float32}
    exact, bounds = rounding_bounds(question(double), torch.float32)
    for key, found in entries(result, exact).items():
        assert distance(found, exact[key]) < bounds[key], key


# --- forward results against torch.optim -------------------------------------------------------------------------


def every_option(**options: list[Any]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*options.values()):
        yield dict(zip(options, chosen, strict=True))


def combinations() -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    both: dict[str, list[Any]] = {"weight_decay": [0.0, 0.01], "maximize": [False, True]}
    for o in every_option(momentum=[0.0, 0.9], dampening=[0.0, 0.2], nesterov=[False, True], **both):
        if not o["nesterov"] or (o["momentum"] and not o["dampening"]):
            yield SGD, torch.optim.SGD, {"lr": 0.05, **o}
    for o in every_option(lr_decay=[0.0, 0.1], initial_accumulator_value=[0.0, 0.5], eps=[1e-10, 1e-3], **both):
        yield Adagrad, torch.optim.Adagrad, {"lr": 0.05, **o}
    for kind, theirs in ((Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)):
        for o in every_option(betas=[(0.9, 0.999), (0.5, 0.6)], eps=[1e-8, 1e-3], amsgrad=[False, True], **both):
            yield kind, theirs, {"lr": 0.05, **o}


@pytest.mark.parametrize("kind", [SGD, Adagrad, Adam, AdamW])
def test_forward_equals_torch_optim(kind: type[Optimizer]) -> None:
    """theta and the state after each of 100 steps, for every combination of options, in float64."""
    tried = 0
    start = torch.linspace(-1.5, 2.0, 7)
    for ours, theirs, options in combinations():
        if ours is not kind:
            continue
        tried += 1
        optimizer = ours(**options)
        theta = {"w": start.clone()}
        hyper = {"w": {n: torch.tensor(float(v)) for n, v in optimizer.hyperparameters().items()}}
        state = optimizer.initial_state(theta, hyper)
        parameter = start.clone().requires_grad_()
        reference = theirs([parameter], **options, foreach=False)
        for j in range(100):
            push = torch.cos(3 * start + j)  # changes sign; the weak spring keeps the loop from amplifying roundings
            parameter.grad = push + 0.1 * (parameter.detach() - start)
            theta, state = optimizer.step(theta, state, {"w": push + 0.1 * (theta["w"] - start)}, hyper)
            reference.step()
            assert distance(theta["w"], parameter.detach()) <= 1e-14, (options, j)
        held = reference.state[parameter]
        for slot, by_name in state.items():
            if slot != "step":
                # The sums of 100 squares and of 100 signed terms lose a few bits more than theta does.
                assert distance(by_name["w"], held[slot]) <= 1e-13, (options, slot)
    assert tried >= 20
