"""Second derivatives through the sweep, and inner loops within inner loops, against plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.errors import ArgumentError, SecondDerivativeError
from gimli_core.memory import Checkpoint, StoreStates
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD, Adam, AdamW, ClipNorm, Lion, Optimizer, RMSprop
from gimli_core.verification.oracles.plain_rules import plain_step, rule_of
from tests.optimizers.rules import PlainAdam
from tests.problems import RULES

CURVATURE = torch.tensor([1.0, 3.0], dtype=torch.float64)


def inner_loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    return (CURVATURE * (theta["x"] - 1) ** 2).sum()


def inner_val(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    return ((theta["x"] + 0.5) ** 2).sum()


INNER = gimli.Problem(inner_loss, inner_val, SGD())


def middle_loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    """The value of two SGD steps with rate e^a from w."""
    L: Tensor = gimli.unroll(INNER, {"x": theta["w"]}, [None] * 2, None, phi_opt={"lr": phi["a"].exp()}, derivatives=2)
    return L


def cubes(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    return (theta["w"] ** 3).sum()


def middle_plainly(w: Tensor, a: Tensor) -> Tensor:
    x = w
    for _ in range(2):
        x = x - a.exp() * 2 * CURVATURE * (x - 1)
    return ((x + 0.5) ** 2).sum()


def test_the_case_of_two_loops() -> None:
    """Two steps of rate 0.1 on the value of two steps of rate e^a, as a function of where these start."""
    a, w = torch.tensor(-2.0, requires_grad=True), torch.tensor([0.3, -0.2], requires_grad=True)
    middle = gimli.Problem(middle_loss, cubes, SGD(lr=0.1))
    L = gimli.unroll(middle, {"w": w}, [None] * 2, None, phi_loss={"a": a})
    found = torch.autograd.grad(L, (a, w))
    v = w
    for _ in range(2):
        v = v - 0.1 * torch.autograd.grad(middle_plainly(v, a), v, create_graph=True)[0]
    expected = torch.autograd.grad((v**3).sum(), (a, w))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert [round(x, 4) for x in (found[0].item(), *found[1].tolist())] == [0.0266, 0.0119, 0.1459]


@pytest.mark.parametrize("memory", [StoreStates(), Checkpoint(1)], ids=repr)
def test_the_outer_of_two_loops_may_have_any_schedule(memory: Any) -> None:
    middle = gimli.Problem(middle_loss, cubes, Adam(lr=0.1, eps=0.1))
    args = ({"w": torch.tensor([0.3, -0.2])}, [None] * 3, None)
    first, other = (
        gimli.meta_gradient(middle, *args, phi_loss={"a": torch.tensor(-2.0)}, phi_opt={"lr": 0.1}, memory=m)
        for m in (None, memory)
    )
    for name in ("A_opt", "A_loss", "B_0"):
        torch.testing.assert_close(getattr(other, name), getattr(first, name), rtol=0, atol=0)
    gimli.verify(middle, *args, phi_loss={"a": torch.tensor(-2.0)}, phi_opt={"lr": 0.1}).assert_ok()


def test_three_loops() -> None:
    """The value of the two loops as the inner loss of a third."""
    two = gimli.Problem(middle_loss, cubes, SGD())

    def of_two(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        L: Tensor = gimli.unroll(
            two,
            {"w": theta["u"]},
            [None] * 2,
            None,
            phi_loss={"a": phi["a"]},
            phi_opt={"lr": phi["rate"]},
            derivatives=2,
        )
        return L

    def square(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return (theta["u"] ** 2).sum()

    a, rate = torch.tensor(-2.0, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    u_0 = torch.tensor([0.3, -0.2], requires_grad=True)
    three = gimli.Problem(of_two, square, SGD(lr=0.05))
    L = gimli.unroll(three, {"u": u_0}, [None] * 2, None, phi_loss={"a": a, "rate": rate})
    found = torch.autograd.grad(L, (a, rate, u_0))
    u = u_0
    for _ in range(2):
        v = u
        for _ in range(2):
            v = v - rate * torch.autograd.grad(middle_plainly(v, a), v, create_graph=True)[0]
        u = u - 0.05 * torch.autograd.grad((v**3).sum(), u, create_graph=True)[0]
    expected = torch.autograd.grad((u**2).sum(), (a, rate, u_0))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


# --- second derivatives of one loop ---


def loss(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
    return torch.cosh(theta["w"] @ batch + theta["b"]).sum() * phi["scale"].exp() + (theta["b"] ** 4).sum()


def given() -> dict[str, Any]:
    return {
        "theta_0": {"w": torch.randn(2, 3) / 2, "b": torch.randn(2) / 2},
        "train_batches": list(torch.randn(3, 3)),
        "val_batch": torch.randn(3),
    }


def plainly(rule: Optimizer, made: dict[str, Any], theta: Tensors, hyper: dict[str, Tensor], scale: Tensor) -> Tensor:
    """L by a plain unroll with graph."""
    from gimli_core.verification.question import Question

    question = Question(Call(gimli.Problem(loss, loss, rule), steps=3, **made))
    per = {k: dict(hyper) for k in theta}
    s = rule.initial_state(theta, per)
    for batch in made["train_batches"]:
        value = loss(theta, {"scale": scale}, batch)
        G = dict(zip(theta, torch.autograd.grad(value, list(theta.values()), create_graph=True), strict=True))
        theta, s = plain_step(question, theta, s, G, per)
    return loss(theta, {"scale": scale}, made["val_batch"])


def hessian_product(L: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of the Hessian over all inputs with fixed directions."""
    G = torch.autograd.grad(L, inputs, create_graph=True)
    along = sum((g * torch.arange(1.0, g.numel() + 1).reshape(g.shape).cos()).sum() for g in G)
    return list(torch.autograd.grad(along, inputs, allow_unused=True))


RECORDED = {
    "sgd": (SGD(momentum=0.5), ("lr", "momentum")),
    "adam": (Adam(eps=1e-2), ("lr", "beta1", "beta2")),
    "adamw": (AdamW(eps=1e-2), ("lr", "weight_decay")),
    "rmsprop": (RMSprop(eps=1e-2), ("lr", "alpha")),
    "lion": (Lion(), ("lr",)),
    "derived": (PlainAdam(eps=1e-2), ("lr", "beta2")),
    "clipped": (ClipNorm(SGD(), max_norm=0.5), ("lr", "max_norm")),
}
VALUES = {"lr": 0.1, "momentum": 0.5, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1, "alpha": 0.9, "max_norm": 0.5}


@pytest.mark.parametrize(("rule", "names"), RECORDED.values(), ids=RECORDED)
def test_second_derivatives_are_those_of_the_graph(rule: Optimizer, names: tuple[str, ...]) -> None:
    made = given()
    theta = {k: v.requires_grad_() for k, v in made["theta_0"].items()}
    learned = {name: torch.tensor(VALUES[name], requires_grad=True) for name in names}
    scale = torch.tensor(-0.5, requires_grad=True)
    inputs = [*theta.values(), *learned.values(), scale]
    L = gimli.unroll(gimli.Problem(loss, loss, rule), **made, phi_opt=learned, phi_loss={"scale": scale}, derivatives=2)
    constants = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in rule.hyperparameters().items()}
    expected = plainly(rule, made, theta, {**constants, **learned}, scale)
    torch.testing.assert_close(L, expected, rtol=1e-12, atol=0)
    for found, want in zip(hessian_product(L, inputs), hessian_product(expected, inputs), strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if want is None else want, rtol=1e-9, atol=1e-11)


def test_every_rule_of_the_table_has_second_derivatives_or_none() -> None:
    """By differences of the first derivative, for the rules that no plain rule stands for and those that one does."""
    smooth = [rule for rule in RULES if not rule.flat and "amsgrad" not in rule.name and "maximize" not in rule.name]
    assert len(smooth) > 8
    made = given()
    for rule in smooth:
        assert rule_of(rule.optimizer) is not None

        def slope(lr: Tensor, rule: Any = rule, **more: Any) -> Tensor:
            phi_opt = {**{k: torch.tensor(v) for k, v in rule.learned.items()}, "lr": lr}
            L = gimli.unroll(
                gimli.Problem(loss, loss, rule.optimizer),
                **made,
                phi_opt=phi_opt,
                phi_loss={"scale": torch.tensor(-0.5)},
                check=False,
                **more,
            )
            return torch.autograd.grad(L, lr, create_graph=True)[0]

        lr, h = torch.tensor(rule.learned["lr"], requires_grad=True), 1e-5
        (found,) = torch.autograd.grad(slope(lr, derivatives=2), lr)
        sides = [slope((lr + d).detach().requires_grad_()).item() for d in (-h, h)]
        assert abs(found.item() - (sides[1] - sides[0]) / (2 * h)) <= 1e-6 * max(1.0, abs(found.item())), rule.name


def test_tasks_a_warm_state_and_losses_along_the_way() -> None:
    T = 3
    made = {**given(), "train_batches": list(torch.randn(3, T, 3)), "val_batch": torch.randn(T, 3)}
    warm = gimli.adapt(
        gimli.Problem(loss, loss, SGD(lr=0.1, momentum=0.5)),
        made["theta_0"],
        [torch.randn(3)],
        phi_loss={"scale": torch.tensor(-0.5)},
    ).state_J
    buffers = {k: v.requires_grad_() for k, v in warm["momentum_buffer"].items()}
    lr, scale = torch.tensor(0.1, requires_grad=True), torch.tensor(-0.5, requires_grad=True)
    theta = {k: v.requires_grad_() for k, v in made["theta_0"].items()}
    inputs = [lr, scale, *theta.values(), *buffers.values()]

    def run(t: int | None) -> Tensor:
        mine = (
            made
            if t is None
            else {**made, "train_batches": [x[t] for x in made["train_batches"]], "val_batch": made["val_batch"][t]}
        )
        return gimli.unroll(
            gimli.Problem(loss, loss, SGD(momentum=0.5)),
            **mine,
            phi_opt={"lr": lr},
            phi_loss={"scale": scale},
            state_0=warm,
            val_weights=[0.3, 0.0, 1.0],
            tasks=None if t is not None else gimli.Tasks(T, "sum"),
            derivatives=2,
        )

    together, alone = hessian_product(run(None), inputs), [hessian_product(run(t), inputs) for t in range(T)]
    for i, found in enumerate(together):
        torch.testing.assert_close(found, sum(one[i] for one in alone), rtol=1e-10, atol=1e-12)
    (first,) = torch.autograd.grad(run(0), lr, create_graph=True)
    (second,) = torch.autograd.grad(first, lr)
    sides = []
    for d in (-1e-5, 1e-5):
        with torch.no_grad():
            lr += d
        sides.append(torch.autograd.grad(run(0), lr)[0].item())
        with torch.no_grad():
            lr -= d
    assert abs(second.item() - (sides[1] - sides[0]) / 2e-5) < 1e-6 * abs(second.item())


def test_a_network_with_dropout_and_batch_norm_meets_what_it_met() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1)).double()

    def through(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        return functional_call(net, theta, batch).square().mean()

    theta_0 = {k: v.detach().clone() for k, v in net.named_parameters()}
    lr = torch.tensor(0.1, requires_grad=True)
    args = (gimli.Problem(through, through, SGD()), theta_0, list(torch.randn(3, 6, 3)), torch.randn(6, 3))
    before = {k: v.clone() for k, v in net.named_buffers()}
    torch.manual_seed(3)
    plain = gimli.meta_gradient(*args, phi_opt={"lr": 0.1}).A_opt["lr"]
    torch.manual_seed(3)
    L = gimli.unroll(*args, phi_opt={"lr": lr}, derivatives=2)
    torch.randn(5)  # what comes between is of no matter
    state = torch.get_rng_state()
    (recorded,) = torch.autograd.grad(L, lr, create_graph=True)
    assert recorded.requires_grad
    torch.testing.assert_close(recorded.detach(), plain.to(recorded), rtol=1e-12, atol=0)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())


def test_a_first_derivative_costs_and_is_what_it_was() -> None:
    made, lr = given(), torch.tensor(0.1, requires_grad=True)
    made |= {"phi_opt": {"lr": lr}, "phi_loss": {"scale": torch.tensor(-0.5)}}
    problem = gimli.Problem(loss, loss, Adam(eps=0.1))
    once, twice = (torch.autograd.grad(gimli.unroll(problem, **made, derivatives=n), lr)[0] for n in (1, 2))
    assert torch.equal(once, twice)
    with torch.no_grad():
        assert not gimli.unroll(problem, **made, derivatives=2).requires_grad


def test_without_it_a_second_derivative_is_refused_and_says_how() -> None:
    lr = torch.tensor(0.1, requires_grad=True)
    made = {**given(), "phi_opt": {"lr": lr}, "phi_loss": {"scale": torch.tensor(-0.5)}}
    (G,) = torch.autograd.grad(gimli.unroll(gimli.Problem(loss, loss, SGD()), **made), lr, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="derivatives=2"):
        G.backward()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"derivatives": 3}, "derivatives: expected 1 or 2"),
        ({"derivatives": True}, "derivatives: expected 1 or 2"),
        ({"approximation": gimli.FirstOrder()}, "approximation: expected no such approximation beside derivatives=2"),
        ({"tasks": gimli.Tasks(3, chunk=2)}, "tasks: expected no such tasks beside derivatives=2; got chunks"),
        ({"val_weights": torch.ones(3, requires_grad=True)}, "val_weights: .*weights that require grad"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_any_work(more: dict[str, Any], message: str) -> None:
    made = {**given(), "phi_opt": {"lr": torch.tensor(0.1, requires_grad=True)}, "derivatives": 2, **more}
    made |= {"phi_loss": {"scale": torch.tensor(-0.5)}}
    if "tasks" in more:
        made |= {"train_batches": list(torch.randn(3, 3, 3)), "val_batch": torch.randn(3, 3)}
    with pytest.raises(ArgumentError, match=message):
        gimli.unroll(gimli.Problem(loss, loss, SGD()), **made)
