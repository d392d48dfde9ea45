"""Rules that see the loss of a step and its number: exact under every schedule, means, task and compiled run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
import gimli_core.inner_loop as inner_loop
from gimli_core.arguments.call import Call
from gimli_core.errors import ArgumentError
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers import SGD, Accumulate, ClipNorm, DerivedOptimizer, Lookahead, Partition, hyperparameter
from gimli_core.optimizers.check import check_pullback
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from gimli_core.verification.question import Question
from tests.compare import agree, assert_same, entries, said
from tests.problems import SCHEDULES

T, J = 3, 4

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler"
)


@dataclass(frozen=True, eq=False)
class Greedy(DerivedOptimizer):
    """theta' = theta - lr·tanh(ℓ)·b'/(1 + j/3), b' = momentum·b + G/(1 + ℓ²): theta and s are functions of the loss."""

    sees = ("loss", "j")
    lr: Any = hyperparameter(0.1)
    momentum: Any = hyperparameter(0.5)

    def slots(self) -> tuple[str, ...]:
        return ("buffer",)

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        moved, buffer = {}, {}
        for k, w in theta.items():
            h = hyper[k]
            buffer[k] = h["momentum"] * state["buffer"][k] + G[k] / (1 + h["loss"] ** 2)
            moved[k] = w - h["lr"] * torch.tanh(h["loss"]) * buffer[k] / (1 + h["j"] / 3)
        return moved, {"step": state["step"] + 1, "buffer": buffer}


class Blind(Greedy):
    """The fault that the adjoint of the loss is for: the loss's value is taken for a constant."""

    def pullback(self, *arguments: Any) -> Any:
        pulled = super().pullback(*arguments)
        return pulled._replace(A={k: {n: a * (n != "loss") for n, a in A.items()} for k, A in pulled.A.items()})


def loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    fit = torch.tanh(x @ theta["w"]) @ theta["v"] + theta["c"] - y
    return fit.square().mean() + phi["l2"].exp() * theta["w"].square().sum()


def given(rule: Any, **more: Any) -> dict[str, Any]:
    made = [(torch.randn(T, 5, 3), torch.randn(T, 5)) for _ in range(J + 1)]
    return {
        "problem": gimli.Problem(loss, loss, rule),
        "theta_0": {"w": torch.randn(3, 4), "v": torch.randn(4), "c": torch.tensor(0.3)},
        "train_batches": made[:-1],
        "val_batch": made[-1],
        "phi_opt": {"lr": 0.2, "momentum": 0.6},
        "phi_loss": {"l2": torch.tensor(-2.0)},
    } | more


def of_task(made: dict[str, Any], t: int) -> dict[str, Any]:
    batches = [(x[t], y[t]) for x, y in made["train_batches"]]
    return {**made, "train_batches": batches, "val_batch": tuple(v[t] for v in made["val_batch"])}


def plainly(made: dict[str, Any]) -> dict[str, Tensor]:
    """The gradient by autograd through the graph, written without the library."""
    theta_0 = {k: v.clone().requires_grad_() for k, v in made["theta_0"].items()}
    lr, momentum, l2 = (torch.tensor(v, requires_grad=True) for v in (0.2, 0.6, -2.0))
    theta, buffer = theta_0, {k: torch.zeros_like(v) for k, v in theta_0.items()}
    for j, batch in enumerate(made["train_batches"]):
        value = loss(theta, {"l2": l2}, batch)
        G = dict(zip(theta, torch.autograd.grad(value, list(theta.values()), create_graph=True), strict=True))
        buffer = {k: momentum * b + G[k] / (1 + value**2) for k, b in buffer.items()}
        theta = {k: w - lr * torch.tanh(value) * buffer[k] / (1 + j / 3) for k, w in theta.items()}
    L = loss(theta, {"l2": l2}, made["val_batch"])
    L.backward()
    return {"lr": lr.grad, "momentum": momentum.grad, "l2": l2.grad} | {k: v.grad for k, v in theta_0.items()}


def question(made: dict[str, Any]) -> Question:
    return Question(Call(**made, steps=J))


def flat(result: gimli.MetaGradient) -> dict[str, Tensor]:
    return {**result.A_opt, **result.A_loss, **result.B_0}


@pytest.mark.parametrize("second_order", ["auto", "forward_over_reverse", "reverse_over_forward"])
def test_exact_by_every_means(second_order: str) -> None:
    made = of_task(given(Greedy()), 0)
    result = gimli.meta_gradient(**made, second_order=second_order)
    torch.testing.assert_close(flat(result), plainly(made), rtol=1e-11, atol=1e-14)


def test_without_the_adjoint_of_the_loss_it_is_wrong() -> None:
    made = of_task(given(Blind()), 0)
    expected = plainly(made)
    found = flat(gimli.meta_gradient(**made))
    for name in ("w", "l2"):  # B_0 by g·G_j, A_loss by g·grad_phi
        assert (found[name] - expected[name]).abs().max() > 1e-3 * expected[name].abs().max()
    report = gimli.verify(**made)
    assert not report.ok
    assert "A_loss increment of l2 at step 3" in str(report)


@pytest.mark.parametrize("left_out", [None, gimli.FirstOrder(), gimli.Truncated(2)], ids=["exact", "first", "last 2"])
@pytest.mark.parametrize("tasks", [None, gimli.Tasks(T, "sum")], ids=["one", "tasks"])
def test_verified_by_every_oracle(left_out: Any, tasks: Any) -> None:
    made = given(Greedy(), val_weights=[0.0, 0.0, 0.5, 1.0])
    made = made if tasks else of_task(made, 1)
    gimli.verify(**made, approximation=left_out, tasks=tasks).assert_ok()


def test_every_schedule_has_the_same_bits() -> None:
    made = of_task(given(Greedy()), 0)
    first, *others = (gimli.meta_gradient(**made, memory=schedule) for schedule in SCHEDULES)
    for other in others:
        assert_same(other, first)


@pytest.mark.parametrize("second_order", ["auto", "forward_over_reverse", "reverse_over_forward"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_tasks_are_the_sum_of_single_runs(chunk: int | None, second_order: str) -> None:
    made = given(Greedy())
    together = flat(gimli.meta_gradient(**made, tasks=gimli.Tasks(T, "sum", chunk), second_order=second_order))
    each = [flat(gimli.meta_gradient(**of_task(made, t))) for t in range(T)]
    expected = {name: torch.stack([one[name] for one in each]).sum(0) for name in together}
    torch.testing.assert_close(together, expected, rtol=1e-11, atol=1e-13)


def test_a_phi_loss_for_each_task() -> None:
    l2 = torch.tensor([-2.0, -1.0, -3.0])
    made = given(Greedy(), phi_loss={"l2": gimli.per_task(l2)})
    together = gimli.meta_gradient(**made, tasks=gimli.Tasks(T, "sum")).A_loss["l2"]
    for t in range(T):
        alone = gimli.meta_gradient(**{**of_task(made, t), "phi_loss": {"l2": l2[t]}})
        torch.testing.assert_close(together[t], alone.A_loss["l2"], rtol=1e-11, atol=1e-14)


@compiler
@pytest.mark.long
@pytest.mark.parametrize("tasks", [None, T])
@pytest.mark.parametrize("kind", ["steps", "whole", True])
def test_compiled_agrees_with_eager(kind: Any, tasks: int | None, caplog: pytest.LogCaptureFixture) -> None:
    made = given(Greedy()) if tasks else of_task(given(Greedy()), 0)
    made["theta_0"] = {k: v * 0.9 for k, v in made["theta_0"].items()}
    compiled, eager = (gimli.meta_gradient(**made, tasks=tasks, compile=how) for how in (kind, False))
    assert "compiled in" in said(caplog)
    assert "not compiled" not in said(caplog)
    agree(compiled, eager)


@pytest.mark.parametrize(
    "rule",
    [
        ClipNorm(Greedy(lr=0.2), max_norm=0.5),
        Lookahead(Greedy(lr=0.2), every=2),
        Accumulate(Greedy(lr=0.2), every=2),
        Partition({"seeing": (Greedy(lr=0.2), ["w", "c"]), "plain": (SGD(lr=0.1, momentum=0.5), ["v"])}),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_wrapped(rule: Any) -> None:
    """Wrappers hand the loss on, and its adjoint back."""
    assert set(rule.seen()) == {"loss", "j"}
    made = given(rule, phi_opt=None)
    alone = [gimli.meta_gradient(**of_task(made, t)) for t in range(T)]
    totals = autograd_gradient(question(of_task(made, 0)), question(of_task(made, 0)).environment())
    for key, expected in totals.gradient.items():
        torch.testing.assert_close(entries(alone[0], totals.gradient)[key], expected, rtol=1e-11, atol=1e-14)
    together = flat(gimli.meta_gradient(**made, tasks=gimli.Tasks(T, "sum")))
    expected = {name: torch.stack([flat(one)[name] for one in alone]).sum(0) for name in together}
    torch.testing.assert_close(together, expected, rtol=1e-11, atol=1e-13)


def test_its_pullback_is_checked_by_the_loss_too() -> None:
    report = check_pullback(Greedy())
    report.assert_ok()
    assert {"loss", "lr"} <= {entry.input for entry in report.entries}
    assert check_pullback(Blind()).first_wrong.input == "loss"


def test_a_tensor_that_the_loss_does_not_use_is_left_alone() -> None:
    def some(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        return ((theta["a"] - batch) ** 2).sum()

    def both(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        return ((theta["a"] * theta["b"] - batch) ** 2).sum()

    theta_0 = {"a": torch.randn(2), "b": torch.randn(2)}
    problem = gimli.Problem(some, both, Greedy(lr=0.2))
    assert torch.equal(
        gimli.meta_gradient(problem, theta_0, [torch.ones(2)] * 2, torch.ones(2)).theta_J["b"], theta_0["b"]
    )
    gimli.verify(problem, theta_0, [torch.ones(2)] * 2, torch.ones(2), phi_opt={"lr": 0.2}).assert_ok()


def test_j_is_the_inner_step_of_the_call_even_from_a_warm_state() -> None:
    made = of_task(given(Greedy()), 0)
    seen: list[float] = []

    class Noting(Greedy):
        def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
            seen.append(hyper["w"]["j"].item())
            return super().step(theta, state, G, hyper)

    made["problem"] = gimli.Problem(loss, loss, Noting())
    with torch.no_grad():
        _, first = gimli.unroll(**made, with_trajectory=True, check=False)
        gimli.unroll(**made, state_0=first.state_J, check=False)
    assert seen == [0, 1, 2, 3, 0, 1, 2, 3]


def test_what_is_seen_has_names_of_its_own() -> None:
    @dataclass(frozen=True, eq=False)
    class Clash(Greedy):
        loss: Any = hyperparameter(0.1)

    class Unknown(Greedy):
        sees = ("loss", "accuracy")

    class Letters(Greedy):
        sees = "loss"

    with pytest.raises(ArgumentError, match="Clash: expected hyperparameters with names of their own; got 'loss'"):
        Clash()
    with pytest.raises(ArgumentError, match=r"Unknown\.sees: expected a tuple of 'loss', 'j'"):
        Unknown()
    with pytest.raises(ArgumentError, match=r"Letters\.sees"):
        Letters()


def test_a_step_of_existing_code_refuses_a_rule_that_sees() -> None:
    class Mine(torch.optim.SGD):
        pass

    inner_loop.register_optim(Mine, Greedy)
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ArgumentError, match="Greedy, which sees 'loss', 'j'"):
        inner_loop.get_diff_optim(Mine([w], lr=0.1), [w]).step((w**2).sum(), params=[w])
