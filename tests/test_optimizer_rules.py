"""Every rule: forwards as torch.optim, its pullback as its own step's, singular points as their limit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gimli_core.optimizers import Optimizer, check_pullback
from gimli_core.optimizers.check import constants
from tests.optimizer_cases import CASES, THETA, Case

pytestmark = pytest.mark.usefixtures("float64")
STEPS = 100


@pytest.fixture
def float64():
    """torch keeps steps, etas and mu products in its default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(shape, generator=generator) for k, shape in THETA.items()}


def gradient(theta: dict[str, Tensor], j: int) -> dict[str, Tensor]:
    """A noisy quadratic's, whose second column of w is never used."""
    generator = torch.Generator().manual_seed(j)
    G = {k: v - 0.3 + torch.randn(v.shape, generator=generator) / 2 for k, v in theta.items()}
    if G["w"].ndim == 2:
        G["w"][:, 1] = 0
    return G


def run(rule: Optimizer, steps: int = STEPS) -> dict[str, Tensor]:
    theta = start()
    hyper = constants(rule, theta)
    state = rule.initial_state(theta, hyper)
    for j in range(steps):
        theta, state = rule.step(theta, state, gradient(theta, j), hyper)
    return theta


def run_torch(case: Case, steps: int = STEPS) -> dict[str, Tensor]:
    params = {k: torch.nn.Parameter(v) for k, v in start().items()}
    optimizer = case.build_torch(list(params.values()))
    for j in range(steps):
        for k, G in gradient({k: p.detach() for k, p in params.items()}, j).items():
            params[k].grad = G.to_sparse() if case.rule == "SparseAdam" else G
        optimizer.step()
    return {k: p.detach() for k, p in params.items()}


def lion(case: Case) -> dict[str, Tensor]:
    """Algorithm 2 of Chen et al. 2023, written out."""
    o, theta = case.options, start()
    momentum = {k: torch.zeros_like(v) for k, v in theta.items()}
    for j in range(STEPS):
        for k, G in gradient(theta, j).items():
            g = -G if o["maximize"] else G
            update = torch.sign(o["betas"][0] * momentum[k] + (1 - o["betas"][0]) * g)
            theta[k] = theta[k] - o["lr"] * (update + o["weight_decay"] * theta[k])
            momentum[k] = o["betas"][1] * momentum[k] + (1 - o["betas"][1]) * g
    return theta


PUBLISHED: dict[str, Callable[[Case], dict[str, Tensor]]] = {"Lion": lion}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_forward_results_equal_the_original_over_100_steps(case):
    ours = run(case.build())
    theirs = PUBLISHED[case.rule](case) if case.rule in PUBLISHED else run_torch(case)
    for k, want in theirs.items():
        assert torch.isfinite(want).all()
        # 100 steps of a few roundings each; every rule here contracts towards the minimum.
        assert ((ours[k] - want).abs() <= 1e-14 * (want.abs() + want.abs().max())).all(), k


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_pullback_is_that_of_the_step(case):
    rule = case.build()
    bound = rule.bind({name: torch.tensor(float(v)) for name, v in rule.hyperparameters().items()})
    for steps in (1, 2, 12):
        check_pullback(rule, steps=steps, seed=steps).assert_ok()
        check_pullback(bound, steps=steps, seed=steps).assert_ok()  # zeros too take part, and have a derivative
