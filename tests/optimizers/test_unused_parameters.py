"""What the loss of a step does not use is left alone, as torch.optim leaves a parameter whose .grad is None."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core import optimizers
from gimli_core.errors import ArgumentError
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import SGD, Adam, Optimizer
from gimli_core.verification.oracles.plain_rules import plain_step, rule_of

D = torch.float64
RULES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "SGD": ({"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.2}, ("w", "b", "never")),
    "Adam": ({"lr": 0.05, "weight_decay": 0.1}, ("w", "b", "never")),
    "AdamW": ({"lr": 0.05, "weight_decay": 0.1}, ("w", "b", "never")),
    "Adagrad": ({"lr": 0.05, "lr_decay": 0.1}, ("w", "b", "never")),
    "RMSprop": ({"lr": 0.05, "momentum": 0.5}, ("w", "b", "never")),
    "Adadelta": ({"lr": 0.5, "weight_decay": 0.1}, ("w", "b", "never")),
    "Adamax": ({"lr": 0.05, "weight_decay": 0.1}, ("w", "b", "never")),
    "NAdam": ({"lr": 0.05, "weight_decay": 0.1}, ("w", "b", "never")),
    "RAdam": ({"lr": 0.05, "weight_decay": 0.1}, ("w", "b", "never")),
    "ASGD": ({"lr": 0.05, "weight_decay": 0.1}, ("w", "b", "never")),
    "Rprop": ({"lr": 0.05}, ("w", "b", "never")),
    "Adafactor": ({"lr": 0.05, "weight_decay": 0.1}, ("w", "b", "never")),
    "Muon": ({"lr": 0.05}, ("w", "v", "never_too")),
}
SHAPES = {"w": (2, 3), "v": (3, 2), "b": (3,), "never": (2,), "never_too": (2, 2)}
USED = ("wbv", "w", "bv", "wbv", "bv", "w")  # the initials of what the loss of each step uses
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "retained": lambda tmp: RetainGraphs(),
    "stored": lambda tmp: StoreStates(),
    "checkpoints": lambda tmp: Checkpoint(2),
    "disk": lambda tmp: Checkpoint(2, disk=tmp),
}


def start(names: tuple[str, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {k: torch.randn(SHAPES[k], generator=generator, dtype=D) for k in names}


def train_loss(theta: Any, phi: Any, used: str) -> Tensor:
    parts = [(v - 0.3).pow(4).sum() + v.square().sum() for k, v in theta.items() if k in tuple(used)]
    return torch.stack(parts).sum()


def val_loss(theta: Any, phi: Any, batch: Any) -> Tensor:
    return torch.stack([v.sin().sum() for v in theta.values()]).sum()


def batches(names: tuple[str, ...]) -> list[str]:
    return [used for used in USED if set(used) & set(names)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", RULES)
def test_each_rule_leaves_alone_what_torch_leaves_alone(name: str, schedule: str, tmp_path: Any) -> None:
    options, names = RULES[name]
    rule = getattr(optimizers, name)(**options)
    if name == "Muon":
        rule = getattr(optimizers, name)(**options, ns_dtype=None)
    theta_0, steps = start(names), batches(names)
    problem = gimli.Problem(train_loss, val_loss, rule)
    came = gimli.meta_gradient(problem, theta_0, steps, None, memory=SCHEDULES[schedule](tmp_path))
    if name != "Muon":  # torch's rounds to bfloat16
        parameters = {k: torch.nn.Parameter(v.clone()) for k, v in theta_0.items()}
        theirs = getattr(torch.optim, name)(parameters.values(), **options)
        for used in steps:
            theirs.zero_grad()
            train_loss(parameters, {}, used).backward()  # type: ignore[no-untyped-call]
            theirs.step()
        for k, p in parameters.items():
            torch.testing.assert_close(came.theta_J[k], p.detach(), rtol=1e-9, atol=1e-12)
    assert torch.equal(came.theta_J[names[-1]], theta_0[names[-1]])
    expected = by_autograd(rule, theta_0, steps)
    for k, B in expected.items():
        torch.testing.assert_close(came.B_0[k], B, rtol=1e-8, atol=1e-11)


def by_autograd(rule: Optimizer, theta_0: dict[str, Tensor], steps: list[str]) -> dict[str, Tensor]:
    """dL/dtheta_0 through steps of one tensor at a time, of those only that have a gradient."""
    leaves = {k: v.clone().requires_grad_() for k, v in theta_0.items()}
    theta: dict[str, Tensor] = dict(leaves)
    hyper = {n: torch.as_tensor(v, dtype=D) for n, v in rule.hyperparameters().items()}
    states = {k: rule.initial_state({k: v}, {k: hyper}) for k, v in theta.items()}
    for used in steps:
        G = torch.autograd.grad(train_loss(theta, {}, used), list(theta.values()), create_graph=True, allow_unused=True)
        for k, g in zip(list(theta), G, strict=True):
            if g is not None:
                new, states[k] = rule.step({k: theta[k]}, states[k], {k: g}, {k: hyper})
                theta = {**theta, k: new[k]}
    found = torch.autograd.grad(val_loss(theta, {}, None), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("name", [name for name in RULES if name != "Muon"])
def test_the_plain_rules_pass_over_what_torch_passes_over(name: str) -> None:
    options, names = RULES[name]
    rule: Optimizer = getattr(optimizers, name)(**options)
    assert rule_of(rule) is not None
    question: Any = SimpleNamespace(optimizer=rule)
    theta = start(names)
    hyper = {k: {n: torch.as_tensor(v, dtype=D) for n, v in rule.hyperparameters().items()} for k in theta}
    parameters = {k: torch.nn.Parameter(v.clone()) for k, v in theta.items()}
    theirs = getattr(torch.optim, name)(parameters.values(), **options)
    state = {**rule.initial_state(theta, hyper), "step": 0}
    for used in batches(names):
        theirs.zero_grad()
        train_loss(parameters, {}, used).backward()  # type: ignore[no-untyped-call]
        G = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in parameters.items()}
        unused = [k for k, p in parameters.items() if p.grad is None]
        theirs.step()
        theta, state = plain_step(question, theta, state, G, hyper, unused=unused)
        for k, p in parameters.items():
            torch.testing.assert_close(theta[k], p.detach(), rtol=1e-9, atol=1e-12)


def test_the_printed_case() -> None:
    def train(theta: Any, phi: Any, which: str) -> Tensor:
        return theta[which].square().sum()

    def val(theta: Any, phi: Any, batch: Any) -> Tensor:
        return torch.stack([v.square().sum() for v in theta.values()]).sum()

    theta_0 = {"a": torch.tensor(1.0, dtype=D), "b": torch.tensor(3.0, dtype=D)}
    problem = gimli.Problem(train, val, optimizers.SGD(lr=0.1, momentum=0.9))
    for compile in (False, True):
        r = gimli.meta_gradient(problem, theta_0, ["a", "b"], None, compile=compile)
        assert r.theta_J["a"].item() == pytest.approx(0.8)
        assert r.B_0["a"].item() == pytest.approx(1.28)
        assert {k: v.item() for k, v in r.state_J["skipped"].items()} == {"a": 1, "b": 1}


def test_a_gradient_of_zero_is_a_gradient() -> None:
    def train(theta: Any, phi: Any, batch: Any) -> Tensor:
        return theta["a"].square().sum() + 0 * theta["b"].sum()

    theta_0 = {"a": torch.ones(2, dtype=D), "b": torch.ones(2, dtype=D)}
    problem = gimli.Problem(train, train, optimizers.SGD(lr=0.5, weight_decay=0.5))
    r = gimli.meta_gradient(problem, theta_0, [None], None)
    assert r.theta_J["b"].tolist() == [0.75, 0.75]
    assert "skipped" not in r.state_J


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_run_in_two_parts_is_one_run(name: str) -> None:
    options, names = RULES[name]
    problem = gimli.Problem(train_loss, val_loss, getattr(optimizers, name)(**options))
    whole = gimli.meta_gradient(problem, start(names), list(USED), None)
    first = gimli.meta_gradient(problem, start(names), list(USED[:3]), None)
    second = gimli.meta_gradient(problem, first.theta_J, list(USED[3:]), None, state_0=first.state_J)
    for k in names:
        torch.testing.assert_close(second.theta_J[k], whole.theta_J[k], rtol=0, atol=0)
    wrong = {**first.state_J, "skipped": {"w": 99}}
    with pytest.raises(ArgumentError, match=r"skipped.*w.*missed"):
        gimli.meta_gradient(problem, first.theta_J, list(USED[3:]), None, state_0=wrong)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad"])
def test_tasks_and_verify_agree(name: str) -> None:
    options, names = RULES[name]
    rule = getattr(optimizers, name)(**options)
    problem = gimli.Problem(train_loss, val_loss, rule)
    one = gimli.meta_gradient(problem, start(names), list(USED), None, phi_opt={"lr": 0.05})
    both = gimli.meta_gradient(problem, start(names), list(USED), None, phi_opt={"lr": 0.05}, tasks=2)
    parts = gimli.meta_gradient(problem, start(names), list(USED), None, tasks=gimli.Tasks(2, chunk=1))
    assert parts.state_J["skipped"] == both.state_J["skipped"] == one.state_J["skipped"]
    for k in names:
        torch.testing.assert_close(parts.B_0[k], one.B_0[k], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(both.B_0[k], one.B_0[k], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(both.A_opt["lr"], one.A_opt["lr"], rtol=1e-12, atol=1e-14)
    assert gimli.verify(problem, start(names), list(USED), None, phi_opt={"lr": 0.05}).ok


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_a_live_torch_optimizer_whose_parameters_missed_steps(name: str) -> None:
    options, names = RULES[name]
    parameters = {k: torch.nn.Parameter(v) for k, v in start(names).items()}
    theirs = getattr(torch.optim, name)(parameters.values(), **options)

    def go(steps: tuple[str, ...]) -> None:
        for used in steps:
            theirs.zero_grad()
            train_loss(parameters, {}, used).backward()  # type: ignore[no-untyped-call]
            theirs.step()

    go(USED[1:3])
    optimizer, theta_0, state_0 = optimizers.from_torch(theirs, parameters.items())
    problem = gimli.Problem(train_loss, val_loss, optimizer)
    theta_0 = {k: v.detach().clone() for k, v in theta_0.items()}
    go(USED[3:])
    came = gimli.meta_gradient(problem, theta_0, list(USED[3:]), None, state_0=state_0)
    for k, p in parameters.items():
        torch.testing.assert_close(came.theta_J[k], p.detach(), rtol=1e-9, atol=1e-12)


def test_accumulated_and_clipped_gradients_as_in_a_torch_loop() -> None:
    """Used in none of k steps: left alone. Used in one: its mean. The norm is over those that have a gradient."""
    names = ("w", "b", "never")
    steps = ["w", "w", "w", "wb", "b", "w", "w", "w"]
    rule = optimizers.Accumulate(optimizers.ClipNorm(optimizers.Adam(lr=0.1), max_norm=0.5), every=2)
    came = gimli.meta_gradient(gimli.Problem(train_loss, val_loss, rule), start(names), steps, None)
    parameters = {k: torch.nn.Parameter(v.clone()) for k, v in start(names).items()}
    theirs = torch.optim.Adam(parameters.values(), lr=0.1)
    for j, used in enumerate(steps):
        (train_loss(parameters, {}, used) / 2).backward()  # type: ignore[no-untyped-call]
        if j % 2:
            torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
            theirs.step()
            theirs.zero_grad()
    for k, p in parameters.items():
        torch.testing.assert_close(came.theta_J[k], p.detach(), rtol=1e-9, atol=1e-12)
    assert {k: v.item() for k, v in came.state_J["skipped"].items()} == {"b": 2, "never": 4}


def test_averages_follow_weights_that_rest() -> None:
    """As torch's AveragedModel.update_parameters does, which takes every parameter."""
    ema = optimizers.EMA(optimizers.SGD(lr=0.1, momentum=0.9), ema_decay=0.5)
    problem = gimli.Problem(
        lambda t, p, used: train_loss(ema.weights(t), p, used), lambda t, p, b: val_loss(ema.averages(t), p, b), ema
    )
    came = gimli.meta_gradient(problem, ema.extend(start(("w", "b"))), ["b", "w", "w"], None)
    rested = start(("w", "b"))["b"]
    b = rested - 0.1 * (4 * (rested - 0.3) ** 3 + 2 * rested)
    average = 0.5 * rested + 0.5 * b
    for _ in range(2):
        average = 0.5 * average + 0.5 * b
    torch.testing.assert_close(came.theta_J["b"], b)
    torch.testing.assert_close(came.theta_J["ema.b"], average)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("memory", [gimli.memory.Budget("50MB"), gimli.memory.StoreStates()], ids=str)
def test_what_is_measured_before_a_run_may_leave_a_tensor_alone(memory: Any, check: bool) -> None:
    """A budget and a plan run two steps before the run: there too the tensors are put apart, and nothing is raised."""
    theta_0 = {"a": torch.ones(3), "b": torch.full((3,), 2.0)}

    def made() -> gimli.Problem:
        return gimli.Problem(
            lambda theta, phi, which: theta[which].square().sum(),
            lambda theta, phi, batch: sum(v.square().sum() for v in theta.values()),  # type: ignore[arg-type, return-value]
            gimli.optimizers.SGD(lr=0.1, momentum=0.9),
        )

    arguments: tuple[Any, ...] = (theta_0, ["a", "b"] * 3, None)
    expected = gimli.meta_gradient(made(), *arguments, watch=lambda event: None)
    found = gimli.meta_gradient(made(), *arguments, memory=memory, check=check)
    assert all(torch.equal(found.B_0[k], v) for k, v in expected.B_0.items())
    assert gimli.plan(made(), *arguments, check=check).rows
    assert gimli.meta_gradient(made(), theta_0, ["a"], None, memory=gimli.memory.Budget("3MB"), check=check).theta_J


@pytest.mark.parametrize("schedule", ["retained", "stored", "checkpoints"])
@pytest.mark.parametrize("rule", [SGD(lr=0.1, momentum=0.9, weight_decay=0.1), Adam(lr=0.1)], ids=["SGD", "Adam"])
def test_a_gradient_put_in_by_hand_moves_what_the_loss_does_not_use(rule: Optimizer, schedule: str) -> None:
    """As a loss with a linear term has it; what is changed beside it, or to 0, does not."""
    by_hand = torch.tensor([0.5, -0.25], dtype=D)
    theta_0 = {"a": torch.ones(2, dtype=D), "b": torch.full((2,), 2.0, dtype=D), "c": torch.ones(1, dtype=D)}

    def losses(j: int) -> gimli.Problem:
        def loss(theta: Any, phi: Any, batch: tuple[int, str]) -> Tensor:
            of_step, used = batch
            linear = (by_hand * theta["b"]).sum() if of_step == j else 0.0
            return sum((theta[k] ** 4).sum() for k in used) + linear

        return gimli.Problem(loss, lambda theta, phi, batch: sum((v**2).sum() for v in theta.values()), rule)

    batches = [(0, "a"), (1, "a"), (2, "b"), (3, "ab")]
    expected = gimli.meta_gradient(losses(1), theta_0, batches, None, phi_opt={"lr": 0.1})
    walk = gimli.step_through(
        losses(99), theta_0, batches, None, phi_opt={"lr": 0.1}, memory=SCHEDULES[schedule](None), check=False
    )
    for moment in walk:
        if (moment.line, moment.j, moment.replay) == (5, 1, False):
            moment.change("G", {"b": by_hand, "c": torch.zeros(1)})
    actual = walk.result
    assert actual.A_opt["lr"] == expected.A_opt["lr"]
    for k in theta_0:
        assert torch.equal(actual.theta_J[k], expected.theta_J[k])
        assert torch.equal(actual.B_0[k], expected.B_0[k])
    assert torch.equal(actual.theta_J["c"], theta_0["c"])
