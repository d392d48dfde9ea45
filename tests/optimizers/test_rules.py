"""Every rule: forwards as torch.optim, its pullback as its own step's, singular points as their limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gimli_core.optimizers import check_pullback
from gimli_core.optimizers.check import constants
from gimli_core.transforms.one_vector import Spread
from tests.optimizers.cases import CASES, Case

STEPS = 100


def start(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(shape, generator=generator) for k, shape in case.shapes.items()}


def gradient(theta: dict[str, Tensor], j: int) -> dict[str, Tensor]:
    """A noisy quadratic's, whose second column of w is never used."""
    generator = torch.Generator().manual_seed(j)
    G = {k: v - 0.3 + torch.randn(v.shape, generator=generator) / 2 for k, v in theta.items()}
    G["w"][:, 1] = 0
    return G


def run(case: Case, steps: int = STEPS) -> dict[str, Tensor]:
    theta, rule = start(case), case.build_as_torch()
    hyper = constants(rule, theta)
    state = rule.initial_state(theta, hyper)
    for j in range(steps):
        theta, state = rule.step(theta, state, gradient(theta, j), hyper)
    return theta


def run_torch(case: Case, steps: int = STEPS) -> dict[str, Tensor]:
    params = {k: torch.nn.Parameter(v) for k, v in start(case).items()}
    optimizer = case.build_torch(list(params.values()))
    for j in range(steps):
        for k, G in gradient({k: p.detach() for k, p in params.items()}, j).items():
            params[k].grad = G.to_sparse() if case.rule == "SparseAdam" else G
        optimizer.step()
    return {k: p.detach() for k, p in params.items()}


def lion(case: Case) -> dict[str, Tensor]:
    """Algorithm 2 of Chen et al. 2023, written out."""
    o, theta = case.options, start(case)
    momentum = {k: torch.zeros_like(v) for k, v in theta.items()}
    for j in range(STEPS):
        for k, G in gradient(theta, j).items():
            g = -G if o["maximize"] else G
            update = torch.sign(o["betas"][0] * momentum[k] + (1 - o["betas"][0]) * g)
            theta[k] = theta[k] - o["lr"] * (update + o["weight_decay"] * theta[k])
            momentum[k] = o["betas"][1] * momentum[k] + (1 - o["betas"][1]) * g
    return theta


def lamb(case: Case) -> dict[str, Tensor]:
    """Algorithm 2 of You et al. 2020, written out; φ(z) = min(z, norm_limit)."""
    o, theta = case.options, start(case)
    m = {k: torch.zeros_like(v) for k, v in theta.items()}
    v = {k: torch.zeros_like(x) for k, x in theta.items()}
    (b1, b2), limit = o["betas"], o["norm_limit"] or float("inf")
    for j in range(STEPS):
        for k, G in gradient(theta, j).items():
            g = -G if o["maximize"] else G
            m[k], v[k] = b1 * m[k] + (1 - b1) * g, b2 * v[k] + (1 - b2) * g**2
            c1, c2 = (1 - b1 ** (j + 1), 1 - b2 ** (j + 1)) if o["bias_correction"] else (1, 1)
            u = m[k] / c1 / (torch.sqrt(v[k] / c2) + o["eps"]) + o["weight_decay"] * theta[k]
            theta[k] = theta[k] - o["lr"] * min(float(theta[k].norm()), limit) / u.norm() * u
    return theta


PUBLISHED: dict[str, Callable[[Case], dict[str, Tensor]]] = {"Lion": lion, "LAMB": lamb}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_forward_results_equal_the_original_over_100_steps(case):
    ours = run(case)
    theirs = PUBLISHED[case.rule](case) if case.rule in PUBLISHED else run_torch(case)
    for k, want in theirs.items():
        assert torch.isfinite(want).all()
        # 100 steps of a few roundings each; every rule here contracts towards the minimum.
        assert ((ours[k] - want).abs() <= 1e-14 * (want.abs() + want.abs().max())).all(), k


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_pullback_is_that_of_the_step(case):
    rule = case.build()
    bound = rule.bind(
        {name: float(v) for name, v in rule.hyperparameters().items() if rule.uses(name) or name != "eps1"}
    )
    for steps in (1, 2, 12):
        check_pullback(rule, start(case), steps=steps, seed=steps).assert_ok()
        check_pullback(bound, start(case), steps=steps, seed=steps).assert_ok()  # zeros too have a derivative


READINGS: dict[str, Any] = {
    "get": lambda d: d.get("w"), "get nothing": lambda d: d.get("x", 1), "print": repr, "copy": lambda d: d.copy(),
    "or": lambda d: d | {"x": 1}, "ror": lambda d: {"x": 1} | d, "items": lambda d: list(d.items()),
    "values": lambda d: list(d.values()), "reversed": lambda d: list(reversed(d)), "stars": lambda d: {**d},
    "dict": dict, "in": lambda d: ("w" in d, "x" in d), "len": lambda d: (len(d), bool(d)), "entry": lambda d: d["b"],
}  # fmt: skip


@pytest.mark.parametrize("reading", READINGS)
def test_views_of_one_vector_read_as_a_dict(reading: str) -> None:
    plain = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    spread = Spread(torch.tensor([1.0, 2.0, 3.0]), {"w": (1, 2), "b": (1,)}, [2, 1])
    assert repr(READINGS[reading](spread)) == repr(READINGS[reading](plain))


def test_views_of_one_vector_compare_and_refuse_to_be_set() -> None:
    spread = Spread(torch.tensor([1.0]), {"w": (1,)}, [1])
    assert spread != {}
    assert spread == {"w": torch.tensor([1.0])}
    with pytest.raises(TypeError, match="make a new dict"):
        spread["w"] = torch.zeros(1)
