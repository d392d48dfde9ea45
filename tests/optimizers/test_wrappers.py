"""Wrappers: forwards as the code that people write, their pullbacks as their own steps', SAM as its algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import (
    EMA,
    SGD,
    Accumulate,
    Adam,
    AdamW,
    ClipNorm,
    ClipValue,
    Lookahead,
    MaskedDecay,
    Optimizer,
    Partition,
    RMSprop,
    check_pullback,
    sam,
)
from gimli_core.optimizers.check import constants
from gimli_core.verification import verify
from tests.problems import squares, two_tensors, wells

INNER = [SGD(lr=0.1, momentum=0.8, weight_decay=0.05), Adam(lr=0.1, eps=1e-3)]
WRAPPERS: dict[str, Callable[[Optimizer], Optimizer]] = {
    "clip-norm": lambda inner: ClipNorm(inner, max_norm=0.5),
    "clip-norm-idle": lambda inner: ClipNorm(inner, max_norm=50.0),
    "clip-norm-1": lambda inner: ClipNorm(inner, max_norm=0.5, norm_type=1.0),
    "clip-norm-3": lambda inner: ClipNorm(inner, max_norm=0.5, norm_type=3.0),
    "clip-norm-inf": lambda inner: ClipNorm(inner, max_norm=0.5, norm_type=float("inf")),
    "clip-value": lambda inner: ClipValue(inner, clip_value=0.5),
    "decay": lambda inner: MaskedDecay(inner, decay=0.1),
    "decay-coupled": lambda inner: MaskedDecay(inner, decay=0.1, mask=["b"], decoupled=False),
    "lookahead": lambda inner: Lookahead(inner, slow_rate=0.3, every=3),
    "accumulate": lambda inner: Accumulate(inner, every=3),
    "nested": lambda inner: Lookahead(
        ClipNorm(MaskedDecay(Accumulate(inner, every=2), decay=0.1), max_norm=0.5), every=2
    ),
}


@pytest.mark.parametrize("inner", INNER, ids=["sgd", "adam"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_the_pullback_is_that_of_the_step(wrap: Any, inner: Optimizer) -> None:
    rule = wrap(inner)
    for steps in (0, 1, 2, 5):  # first, waiting and acting steps
        if steps or isinstance(inner, SGD):  # v = 0 has no derivative by autograd
            check_pullback(rule, steps=steps, seed=steps).assert_ok()


def test_ema_pullback() -> None:
    ema = EMA(Adam(lr=0.1, eps=1e-3), ema_decay=0.7)
    theta = ema.extend({"w": torch.randn(3, 2), "b": torch.randn(4)})
    check_pullback(ema, theta).assert_ok()


def test_partition_pullback() -> None:
    rule = Partition({"matrices": (RMSprop(lr=0.1, centered=True), ["w"]), "rest": (AdamW(lr=0.1), ["b"])})
    check_pullback(rule).assert_ok()
    with pytest.raises(ArgumentError, match=r"'c'.*exactly one part"):
        rule.initial_state({"w": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}, {})


def gradients(theta: dict[str, Tensor], j: int) -> dict[str, Tensor]:
    return {k: torch.cos(v * (n + 1) + j) * (1 + 2 * (j % 3)) for n, (k, v) in enumerate(theta.items())}


def run(rule: Optimizer, theta: dict[str, Tensor], steps: int = 30) -> dict[str, Tensor]:
    state = rule.initial_state(theta, constants(rule, theta))
    for j in range(steps):
        theta, state = rule.step(theta, state, gradients(theta, j), constants(rule, theta))
    return theta


def run_torch(
    make: Callable[[Any], torch.optim.Optimizer], before_step: Callable[[Any, int], bool], steps: int = 30
) -> Any:
    params = {k: torch.nn.Parameter(v) for k, v in two_tensors().items()}
    optimizer = make(params)
    for j in range(steps):
        for k, G in gradients({k: p.detach() for k, p in params.items()}, j).items():
            params[k].grad = G if params[k].grad is None else params[k].grad + G
        if before_step(params, j):
            optimizer.step()
            optimizer.zero_grad()
    return {k: p.detach() for k, p in params.items()}


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params.values(), lr=0.1)


def clipped(norm_type: float) -> Callable[[Any, int], bool]:
    return lambda params, j: bool(torch.nn.utils.clip_grad_norm_(params.values(), 0.5, norm_type) > 0)


def by_value(params: Any, j: int) -> bool:
    torch.nn.utils.clip_grad_value_(params.values(), 0.5)
    return True


def every_third(params: Any, j: int) -> bool:
    for p in params.values():
        p.grad = p.grad / 3 if (j + 1) % 3 == 0 else p.grad
    return (j + 1) % 3 == 0


def decay_groups(params: Any) -> torch.optim.Optimizer:
    groups = [{"params": [params["w"]], "weight_decay": 0.1}, {"params": [params["b"]], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.1)


ORIGINALS: dict[str, tuple[Optimizer, Any, Any]] = {
    **{f"clip-norm-{p:g}": (ClipNorm(Adam(lr=0.1), 0.5, p), adam, clipped(p)) for p in (1.0, 2.0, 3.0, float("inf"))},
    "clip-value": (ClipValue(Adam(lr=0.1), 0.5), adam, by_value),
    "accumulate": (Accumulate(Adam(lr=0.1), every=3), adam, every_third),
    "decay": (MaskedDecay(Adam(lr=0.1), decay=0.1), decay_groups, lambda params, j: True),
}


@pytest.mark.parametrize(("rule", "make", "before"), ORIGINALS.values(), ids=ORIGINALS.keys())
def test_forward_results_equal_torch(rule: Optimizer, make: Any, before: Any) -> None:
    ours, theirs = run(rule, two_tensors()), run_torch(make, before)
    for k, want in theirs.items():
        assert torch.allclose(ours[k], want, rtol=1e-13, atol=1e-14)


def test_lookahead_is_its_algorithm() -> None:
    fast, slow = two_tensors(), two_tensors()
    for outer in range(4):
        for inner in range(5):
            G = gradients(fast, 5 * outer + inner)
            fast = {k: v - 0.1 * G[k] for k, v in fast.items()}
        slow = {k: v + 0.3 * (fast[k] - v) for k, v in slow.items()}
        fast = slow
    ours = run(Lookahead(SGD(lr=0.1), slow_rate=0.3, every=5), two_tensors(), steps=20)
    assert all(torch.allclose(ours[k], v, rtol=1e-14, atol=1e-15) for k, v in slow.items())


def test_ema_is_torchs_averaged_model() -> None:
    ema = EMA(SGD(lr=0.1), ema_decay=0.9)
    theta = ema.extend(two_tensors())
    state = ema.initial_state(theta, constants(ema, theta))
    model = torch.nn.ParameterDict({k: v.clone() for k, v in two_tensors().items()})
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)  # the first update copies: theta_0
    for j in range(10):
        theta, state = ema.step(theta, state, gradients(theta, j), constants(ema, theta))
        with torch.no_grad():
            for k, p in model.items():
                p.copy_(theta[k])
        averaged.update_parameters(model)
    for k, average in ema.averages(theta).items():
        assert torch.allclose(average, averaged.module[k].detach(), rtol=1e-14, atol=1e-15)


EXACT: dict[str, tuple[Optimizer, Any, dict[str, float]]] = {
    "clip-norm": (ClipNorm(Adam(lr=0.1), max_norm=1.0), wells, {"lr": 0.1, "max_norm": 1.0, "eps": 1e-3}),
    "clip-value": (ClipValue(SGD(lr=0.1), clip_value=1.0), wells, {"lr": 0.1, "clip_value": 1.0}),
    "decay": (MaskedDecay(Adam(lr=0.1)), wells, {"lr": 0.1, "decay": 0.1, "eps": 1e-3}),
    "lookahead": (Lookahead(Adam(lr=0.1), every=2), wells, {"lr": 0.1, "slow_rate": 0.4, "eps": 1e-3}),
    "accumulate": (Accumulate(Adam(lr=0.1), every=2), wells, {"lr": 0.1, "beta1": 0.8, "eps": 1e-3}),
    "ema": (EMA(SGD(lr=0.1)), wells, {"lr": 0.1, "ema_decay": 0.8}),
    "partition": (
        Partition({"m": (Adam(eps=1e-3), ["w"]), "v": (SGD(), ["b"])}),
        wells,
        {"m.lr": 0.1, "m.eps": 1e-3, "v.lr": 0.05, "v.momentum": 0.5},
    ),
    "sam": (SGD(lr=0.1), sam(wells), {"lr": 0.1}),
    "adaptive-sam": (SGD(lr=0.1), sam(wells, adaptive=True), {"lr": 0.1}),
}


@pytest.mark.parametrize(("rule", "train", "phi_opt"), EXACT.values(), ids=EXACT.keys())
def test_meta_gradients_agree_with_every_oracle(rule: Optimizer, train: Any, phi_opt: dict[str, float]) -> None:
    theta_0 = two_tensors()
    phi = {"c": torch.tensor(0.3)} | ({"rho": torch.tensor(0.2)} if train is not wells else {})
    problem = gimli.Problem(train, squares, rule)
    theta_0 = rule.extend(theta_0) if isinstance(rule, EMA) else theta_0
    verify(problem, theta_0, lambda j: None, None, steps=5, phi_opt=phi_opt, phi_loss=phi).assert_ok()


def test_sam_is_its_algorithm() -> None:
    theta, rho = two_tensors(), 0.2
    phi = {"c": torch.tensor(0.3)}
    result = gimli.meta_gradient(
        gimli.Problem(sam(wells, rho), squares, SGD(lr=0.05)), theta, lambda j: None, None, steps=4, phi_loss=phi
    )
    for _ in range(4):
        leaf = {k: v.requires_grad_() for k, v in theta.items()}
        G = dict(zip(leaf, torch.autograd.grad(wells(leaf, phi, None), list(leaf.values())), strict=True))
        norm = torch.stack([g.square().sum() for g in G.values()]).sum().sqrt()
        away = {k: (v + rho * G[k] / (norm + 1e-12)).detach().requires_grad_() for k, v in leaf.items()}
        G = dict(zip(away, torch.autograd.grad(wells(away, phi, None), list(away.values())), strict=True))
        theta = {k: (v - 0.05 * G[k]).detach() for k, v in theta.items()}
    assert all(torch.allclose(result.theta_J[k], v, rtol=1e-14, atol=1e-15) for k, v in theta.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipNorm(torch.optim.SGD([torch.ones(1)])), "optimizer of gimli_core"),
        (lambda: ClipNorm(SGD(), max_norm=torch.ones(2)), "one number for all tensors"),
        (lambda: ClipNorm(SGD(), norm_type=0.5), ">= 1"),
        (lambda: ClipValue(ClipValue(SGD())), "Use each wrapper once"),
        (lambda: Lookahead(SGD(), every=0), "whole number"),
        (lambda: MaskedDecay(gimli.optimizers.Partition({}), decoupled=True), "lr"),
        (lambda: EMA(SGD()).initial_state({"w": torch.ones(1)}, {}), "ema.extend"),
        (lambda: Partition({"a": (SGD(), "w")}), "list of names"),
    ],
)
def test_misuse_is_explained(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
