"""Learned optimizers and losses: exact, under tasks, schedules, windows and compiled; and the published parts."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.errors import ArgumentError
from gimli_core.learned import CoordinatewiseLSTM, LearnedLoss, MetaLSTM, MLPRule, log_and_sign
from gimli_core.memory import Checkpoint, StoreStates
from gimli_core.notation import Tensors
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from gimli_core.verification.question import Question
from tests.compare import agree, assert_same, entries, said

T, J = 3, 3

RULES: dict[str, Any] = {
    "coordinate-wise": CoordinatewiseLSTM(hidden=3),
    "one layer": CoordinatewiseLSTM(hidden=2, layers=1),
    "meta-lstm": MetaLSTM(hidden=3),
    "mlp": MLPRule(hidden=4, scale=0.1),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler"
)


def loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    fit = torch.tanh(x @ theta["w"]) @ theta["v"] + theta["c"] - y
    return fit.square().mean() + phi["l2"].exp() * theta["w"].square().sum()


def given(rule: Any) -> dict[str, Any]:
    made = [(torch.randn(T, 5, 3), torch.randn(T, 5)) for _ in range(J + 1)]
    return {
        "problem": gimli.Problem(loss, loss, rule),
        "theta_0": {"w": torch.randn(3, 4), "v": torch.randn(4), "c": torch.tensor(0.3)},
        "train_batches": made[:-1],
        "val_batch": made[-1],
        "phi_opt": {"net": rule.parameters(seed=1)},
        "phi_loss": {"l2": torch.tensor(-2.0)},
    }


def of_task(made: dict[str, Any], t: int) -> dict[str, Any]:
    batches = [(x[t], y[t]) for x, y in made["train_batches"]]
    return {**made, "train_batches": batches, "val_batch": tuple(v[t] for v in made["val_batch"])}


@rules
def test_exact(rule: Any) -> None:
    made = of_task(given(rule), 0)
    question = Question(Call(**made, steps=J))
    totals = autograd_gradient(question, question.environment())
    found = entries(gimli.meta_gradient(**made), totals.gradient)
    for key, expected in totals.gradient.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-9, atol=1e-13)
        if key[0] == "A_opt":
            assert expected.abs().max() > 0, key


def test_verified_by_differences_too() -> None:
    rule = RULES["meta-lstm"]
    made = of_task(given(rule), 1)
    few = {"net": {k: v for k, v in made["phi_opt"]["net"].items() if k.endswith("b")}}
    rest = {k: v for k, v in made["phi_opt"]["net"].items() if not k.endswith("b")}
    made["problem"] = gimli.Problem(loss, loss, MetaLSTM(hidden=3, net={**rest, **few["net"]}))
    report = gimli.verify(
        **{**made, "phi_opt": few, "steps": 2, "train_batches": made["train_batches"][:2]},
        oracles=("autograd", "finite_differences"),
    )
    report.assert_ok()


@rules
def test_tasks_schedules_and_windows(rule: Any) -> None:
    made = given(rule)
    together = gimli.meta_gradient(**made, tasks=gimli.Tasks(T, "sum"))
    alone = [gimli.meta_gradient(**of_task(made, t)) for t in range(T)]
    for k, A in together.A_opt["net"].items():
        torch.testing.assert_close(A, sum(one.A_opt["net"][k] for one in alone), rtol=1e-9, atol=1e-12)
    for memory in (StoreStates(), Checkpoint(1)):
        assert_same(gimli.meta_gradient(**of_task(made, 0), memory=memory), alone[0])
    first = of_task({**made, "train_batches": made["train_batches"][:2]}, 0)  # theta, s carried over: T1-T2 windows
    reached = gimli.meta_gradient(**first)
    second = of_task({**made, "train_batches": made["train_batches"][2:]}, 0)
    window = gimli.meta_gradient(**{**second, "theta_0": reached.theta_J}, state_0=reached.state_J)
    torch.testing.assert_close(window.theta_J, alone[0].theta_J, rtol=1e-12, atol=1e-14)


@compiler
@pytest.mark.long
@rules
@pytest.mark.parametrize("tasks", [None, T])
def test_compiled(rule: Any, tasks: int | None, caplog: pytest.LogCaptureFixture) -> None:
    made = given(rule) if tasks else of_task(given(rule), 0)
    compiled, eager = (gimli.meta_gradient(**made, tasks=tasks, compile=how) for how in ("steps", False))
    assert "compiled in" in said(caplog)
    assert "not compiled" not in said(caplog)
    agree(compiled, eager, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hidden", [3, 20])
def test_the_cells_are_those_of_torch(hidden: int) -> None:
    rule = CoordinatewiseLSTM(hidden=hidden)
    net = {k: v.double() for k, v in rule.parameters(seed=2).items()}
    stacked = torch.nn.LSTM(2, hidden, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for layer in (1, 2):
            getattr(stacked, f"weight_ih_l{layer - 1}").copy_(net[f"lstm{layer}.W"])
            getattr(stacked, f"weight_hh_l{layer - 1}").copy_(net[f"lstm{layer}.U"])
            getattr(stacked, f"bias_ih_l{layer - 1}").copy_(net[f"lstm{layer}.b"])
            getattr(stacked, f"bias_hh_l{layer - 1}").zero_()
    theta, G = {"w": torch.randn(5)}, torch.randn(4, 5)
    hyper = {"w": {f"net.{k}": v for k, v in net.items()}}
    state = rule.initial_state(theta, hyper)
    for g in G:
        theta, state = rule.step(theta, state, {"w": g}, hyper)
    seen = torch.stack([torch.stack(log_and_sign(g), -1) for g in G], 1)  # [coordinate, time, 2]
    _, (h, _) = stacked(seen)
    torch.testing.assert_close(state["h2"]["w"], h[1], rtol=1e-12, atol=1e-14)


def test_the_preprocessing_is_as_published() -> None:
    x = torch.tensor([2.0, -0.3, math.exp(-10) * 1.001, -math.exp(-10) * 0.5, 0.0], requires_grad=True)
    size, sign = log_and_sign(x)
    torch.testing.assert_close(
        size.detach(), torch.tensor([math.log(2) / 10, math.log(0.3) / 10, (-10 + math.log(1.001)) / 10, -1.0, -1.0])
    )
    torch.testing.assert_close(sign.detach(), torch.tensor([1.0, -1.0, 1.0, -0.5, 0.0]))
    (slope,) = torch.autograd.grad((size + sign).sum(), x)
    assert torch.isfinite(slope).all()
    torch.testing.assert_close(slope[-1], torch.tensor(math.exp(10)))
    torch.testing.assert_close(slope[0], torch.tensor(0.05))


def test_gates_of_the_meta_lstm_by_hand() -> None:
    rule = MetaLSTM(hidden=2)
    net = {k: v.double() for k, v in rule.parameters(seed=0).items()}
    theta, G = {"w": torch.tensor([0.5, -1.0])}, {"w": torch.tensor([0.2, -3.0])}
    hyper = {"w": {**{f"net.{k}": v for k, v in net.items()}, "loss": torch.tensor(1.7)}}
    moved, state = rule.step(theta, rule.initial_state(theta, hyper), G, hyper)
    for n in range(2):
        l_size, l_sign = log_and_sign(torch.tensor(1.7))
        g_size, g_sign = log_and_sign(G["w"][n])
        z = net["lstm.W"] @ torch.stack([g_size, g_sign, l_size, l_sign]) + net["lstm.b"]
        i, _, g, o = z.chunk(4)
        h = torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g))
        rate, keep = (
            torch.sigmoid(
                net[f"{name}.W"][0] @ torch.cat([h, theta["w"][n : n + 1], torch.zeros(1)]) + net[f"{name}.b"]
            )
            for name in "if"
        )
        torch.testing.assert_close(moved["w"][n], (keep * theta["w"][n] - rate * G["w"][n])[0], rtol=1e-12, atol=0)
    assert (state["i"]["w"] < 0.05).all()
    assert (state["f"]["w"] > 0.95).all()


def test_zero_gradients_have_finite_meta_gradients() -> None:
    """Dead units: half of the coordinates never get a gradient."""

    def half(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return (theta["w"][:2] ** 2).sum() + 0 * theta["w"].sum()

    for rule in RULES.values():
        result = gimli.meta_gradient(
            gimli.Problem(half, half, rule),
            {"w": torch.randn(4)},
            [None] * 4,
            None,
            phi_opt={"net": rule.parameters(seed=0)},
        )
        assert all(torch.isfinite(A).all() for A in result.A_opt["net"].values())


@pytest.mark.parametrize("targets", ["numbers", "classes"])
def test_a_learned_loss_is_exact_and_learns(targets: str) -> None:
    outputs = 1 if targets == "numbers" else 3
    learned = LearnedLoss(outputs, hidden=6)
    x = torch.randn(12, 2)
    true_w = torch.randn(2, outputs)
    y = x @ true_w if targets == "numbers" else (x @ true_w).argmax(1)

    def task_loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        prediction = batch[0] @ theta["w"]
        return F.mse_loss(prediction, batch[1]) if targets == "numbers" else F.cross_entropy(prediction, batch[1])

    inner = learned.train_loss(lambda theta, rows: rows @ theta["w"])
    problem = gimli.Problem(inner, task_loss, gimli.optimizers.SGD(lr=0.5))
    theta_0, phi = {"w": torch.zeros(2, outputs)}, {k: v.double() for k, v in learned.parameters(seed=0).items()}
    gimli.verify(problem, theta_0, [(x, y)] * 2, (x, y), phi_loss=phi, oracles=("autograd",)).assert_ok()
    phi = {k: v.requires_grad_() for k, v in phi.items()}
    adam = torch.optim.Adam(phi.values(), lr=0.02)
    losses = []
    for _ in range(40):
        adam.zero_grad()
        L = gimli.unroll(problem, theta_0, [(x, y)] * 3, (x, y), phi_loss=phi)
        L.backward()
        adam.step()
        losses.append(L.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_learned_optimizer_learns() -> None:
    torch.manual_seed(0)
    rule = CoordinatewiseLSTM(hidden=5, layers=1, scale=0.3)
    phi = {k: v.double().requires_grad_() for k, v in rule.parameters(seed=0).items()}
    adam = torch.optim.Adam(phi.values(), lr=0.02)
    target = torch.randn(6)

    def bowl(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return ((theta["w"] - target) ** 2).sum()

    problem = gimli.Problem(bowl, bowl, rule)
    losses = []
    for _ in range(20):
        adam.zero_grad()
        L = gimli.unroll(problem, {"w": torch.zeros(6)}, [None] * 6, None, phi_opt={"net": phi}, val_weights=[1.0] * 6)
        L.backward()
        adam.step()
        losses.append(L.item())
    assert losses[-1] < 0.6 * losses[0]


def test_sizes_are_whole_numbers() -> None:
    for made in (
        lambda: CoordinatewiseLSTM(hidden=0),
        lambda: MetaLSTM(hidden=2.5),
        lambda: MLPRule(hidden=True),
        lambda: CoordinatewiseLSTM(layers=0),
        lambda: LearnedLoss(0),
    ):
        with pytest.raises(ArgumentError, match="a whole number >= 1"):
            made()
