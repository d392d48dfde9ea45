"""First-order shortcuts: what autograd gives when the graph is cut at the same places, and the result says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import prepare
from gimli_core.derivatives.second_order import MEANS
from gimli_core.errors import ArgumentError, RequirementError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, Schedule, StoreStates
from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.runs.scheduled_run import ScheduledRun
from tests.compare import distance, flat_results, identical
from tests.problems import DISK

J = 6
RULES: dict[str, tuple[Optimizer, dict[str, float]]] = {
    "sgd": (SGD(), {"lr": 0.1}),
    "momentum": (SGD(), {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}),
    "adagrad": (Adagrad(), {"lr": 0.2, "initial_accumulator_value": 0.3, "eps": 1e-3}),
    "adam": (Adam(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}),
    "adamw": (AdamW(), {"lr": 0.05, "beta1": 0.8, "weight_decay": 0.1}),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    penalty = phi["log_l2"].exp() * theta["w"].square().sum() if phi else 0.0
    return ((batch[0] @ theta["w"]).tanh() + theta["b"] - batch[1]).square().mean() + penalty


def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    explicit = phi["log_l2"].square() if phi else 0.0
    return ((batch[0] @ theta["w"]).tanh() + theta["b"] - batch[1]).square().mean() + explicit


def arguments(rule: str, *, with_phi: bool = True, warm: bool = False) -> dict[str, Any]:
    torch.manual_seed(1)
    optimizer, learned = RULES[rule]
    batches = [(torch.randn(7, 3), torch.randn(7)) for _ in range(J + 1)]
    made: dict[str, Any] = {
        "problem": gimli.Problem(train_loss, val_loss, optimizer),
        "theta_0": {"w": 0.5 * torch.randn(3), "b": torch.tensor(0.1)},
        "train_batches": batches[:J],
        "val_batch": batches[J],
        "phi_opt": {name: torch.tensor(value) for name, value in learned.items()},
    }
    if with_phi:
        made["phi_loss"] = {"log_l2": torch.tensor(-2.0)}
    if warm:
        made["phi_opt"].pop("initial_accumulator_value", None)
        made["state_0"] = gimli.meta_gradient(**{**made, "steps": 2}, check=False).state_J
    return made


def rule_of(name: str, x: Any, s: dict[str, Any], G: Any, hp: dict[str, Any], t: int) -> tuple[Any, dict[str, Any]]:
    """One step of a rule, written plainly from torch.optim's documentation; s may be empty at a cold start."""
    decay = hp.get("weight_decay", 0.0)
    if name in ("sgd", "momentum"):
        g = G + decay * x
        if name == "sgd":
            return x - hp["lr"] * g, {}
        buffer = g if t == 1 and not s else hp["momentum"] * s["momentum_buffer"] + g
        return x - hp["lr"] * buffer, {"momentum_buffer": buffer}
    if name == "adagrad":
        total = s["sum"] + G * G
        return x - hp["lr"] * G / (total.sqrt() + hp["eps"]), {"sum": total}
    b1, b2, eps = hp["beta1"], hp.get("beta2", 0.999), hp.get("eps", 1e-8)
    m = b1 * s.get("exp_avg", 0.0) + (1 - b1) * G
    v = b2 * s.get("exp_avg_sq", 0.0) + (1 - b2) * G * G
    x = x * (1 - hp["lr"] * decay)
    x = x - hp["lr"] * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    return x, {"exp_avg": m, "exp_avg_sq": v}


def cut(start: Tensor, now: Tensor) -> Tensor:
    """The value of `now`, with the derivative of `start`: the steps between count as the identity."""
    return start + (now - start).detach()


def autograd(
    rule: str, made: dict[str, Any], *, first_order: bool = False, truncate: int = J, weights: Any = None
) -> dict[tuple[str, ...], Tensor]:
    """The meta-gradient of a plain unroll through autograd, whose graph is cut with detach."""
    hp = {name: v.clone().requires_grad_() for name, v in made["phi_opt"].items()}
    phi = {name: v.clone().requires_grad_() for name, v in made.get("phi_loss", {}).items()}
    theta_0 = {k: v.clone().requires_grad_() for k, v in made["theta_0"].items()}
    given = made.get("state_0", {})
    warm = {slot: held for slot, held in given.items() if slot != "step"}
    warm = {slot: {k: v.clone().requires_grad_() for k, v in held.items()} for slot, held in warm.items()}
    theta, t_0 = dict(theta_0), int(given.get("step", 0))
    s: dict[str, dict[str, Any]] = {k: {slot: held[k] for slot, held in warm.items()} for k in theta}
    if rule == "adagrad" and not given:
        s = {k: {"sum": hp["initial_accumulator_value"].expand_as(v)} for k, v in theta.items()}
    s_0 = {k: dict(held) for k, held in s.items()}
    w = [0.0] * J + [1.0] if weights is None else weights
    L = torch.zeros(())
    for j in range(J):
        if j == J - truncate:
            theta = {k: cut(theta_0[k], v) for k, v in theta.items()}
            # Slots that a cold start does not have begin as constant zeros.
            start = {k: {slot: s_0[k].get(slot, torch.zeros_like(v)) for slot, v in s[k].items()} for k in s}
            s = {k: {slot: cut(start[k][slot], v) for slot, v in s[k].items()} for k in s}
        if w[j]:
            L = L + w[j] * val_loss(theta, phi, made["val_batch"])
        where = {k: v.detach().requires_grad_() for k, v in theta.items()} if first_order else theta
        G = torch.autograd.grad(
            train_loss(where, phi, made["train_batches"][j]), list(where.values()), create_graph=True
        )
        stepped = {k: rule_of(rule, theta[k], s[k], g, hp, t_0 + j + 1) for k, g in zip(theta, G, strict=True)}
        theta, s = {k: x for k, (x, _) in stepped.items()}, {k: held for k, (_, held) in stepped.items()}
    L = L + w[J] * val_loss(theta, phi, made["val_batch"])
    asked = {("A_opt", n): v for n, v in hp.items()} | {("A_loss", n): v for n, v in phi.items()}
    asked |= {("B_0", k): v for k, v in theta_0.items()}
    asked |= {("S_0", slot, k): v for slot, held in warm.items() for k, v in held.items()}
    found = torch.autograd.grad(L, list(asked.values()), allow_unused=True)
    return {key: torch.zeros_like(asked[key]) if g is None else g for key, g in zip(asked, found, strict=True)}


def check(result: gimli.MetaGradient, expected: dict[tuple[str, ...], Tensor]) -> None:
    for (part, *path), value in expected.items():
        found = getattr(result, part)
        for name in path:
            found = found[name]
        assert distance(found, value, 1e-6) < 1e-11, (part, path)


@every_rule
@pytest.mark.parametrize("with_phi", [True, False])
@pytest.mark.parametrize("warm", [False, True])
def test_the_plain_unroll_is_the_engine_where_nothing_is_cut(rule: str, with_phi: bool, warm: bool) -> None:
    """So that what follows tests the cuts."""
    made = arguments(rule, with_phi=with_phi, warm=warm)
    result = gimli.meta_gradient(**made)
    check(result, autograd(rule, made))
    assert result.approximation == ""
    assert "approximation" not in repr(result)


@every_rule
@pytest.mark.parametrize("with_phi", [True, False])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("mean", MEANS)
def test_first_order(rule: str, with_phi: bool, warm: bool, mean: str) -> None:
    """G_j with theta_j cut off, and with phi_loss kept."""
    made = arguments(rule, with_phi=with_phi, warm=warm)
    result = gimli.meta_gradient(**made, approximation=gimli.FirstOrder(), second_order=mean)
    expected = autograd(rule, made, first_order=True)
    check(result, expected)
    exact = gimli.meta_gradient(**made)
    assert distance(result.B_0["w"], exact.B_0["w"]) > 1e-3
    assert result.approximation == "first order: line 14 without V_j Hessian"
    assert "approximation='first order: line 14 without V_j Hessian' (not the exact gradient)" in repr(result)
    assert torch.equal(result.theta_J["w"], exact.theta_J["w"])


@every_rule
@pytest.mark.parametrize("k", [1, 3, J - 1])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
def test_truncated(rule: str, k: int, warm: bool, first_order: bool) -> None:
    made = arguments(rule, warm=warm)
    result = gimli.meta_gradient(**made, approximation=gimli.Approximation(first_order, k))
    check(result, autograd(rule, made, truncate=k, first_order=first_order))
    told = f"truncated: the last {k} of {J} steps, the others as the identity"
    assert result.approximation == ("first order: line 14 without V_j Hessian; " if first_order else "") + told
    exact = gimli.meta_gradient(**made)
    assert identical({"theta": result.theta_J, "s": result.state_J}, {"theta": exact.theta_J, "s": exact.state_J})
    assert torch.equal(result.train_losses, exact.train_losses)


@pytest.mark.parametrize("k", [J, J + 5])
def test_truncating_beyond_the_start_changes_nothing(k: int) -> None:
    made = arguments("adam")
    found, exact = gimli.meta_gradient(**made, approximation=gimli.Truncated(k)), gimli.meta_gradient(**made)
    assert identical(flat_results(found), flat_results(exact))
    assert found.approximation == ""


SCHEDULES: list[Schedule] = [
    RetainGraphs(),
    StoreStates(),
    Checkpoint(1),
    Checkpoint(2, graphs=2),
    Checkpoint(1, gradients=True),
    Checkpoint(2, DISK, disk_snapshots=1, graphs=2, gradients=True),
    Budget("1GB"),
]


@every_rule
@pytest.mark.parametrize(
    "approximation", [gimli.Truncated(4), gimli.FirstOrder(), gimli.Truncated(1) & gimli.FirstOrder()], ids=str
)
@pytest.mark.parametrize("with_phi", [True, False])
def test_schedules_agree_to_the_bit(rule: str, approximation: gimli.Approximation, with_phi: bool) -> None:
    made = arguments(rule, with_phi=with_phi)
    results = [
        flat_results(gimli.meta_gradient(**made, memory=memory, approximation=approximation)) for memory in SCHEDULES
    ]
    assert all(identical(other, results[0]) for other in results[1:])


@pytest.mark.parametrize("memory", SCHEDULES, ids=str)
def test_truncated_with_losses_along_the_way(memory: Schedule) -> None:
    made, weights = arguments("adam"), [0.0, 0.0, 0.0, 0.3, 0.0, -0.2, 0.7]
    result = gimli.meta_gradient(**made, val_weights=weights, approximation=gimli.Truncated(3), memory=memory)
    check(result, autograd("adam", made, truncate=3, weights=weights))


def test_weights_before_the_cut_are_refused() -> None:
    made = arguments("adam")
    with pytest.raises(
        ArgumentError, match=r"val_weights: expected no weight before theta_3, .*; got one at theta_2\."
    ):
        gimli.meta_gradient(**made, val_weights=[0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0], approximation=gimli.Truncated(3))
    learned = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0], requires_grad=True)
    with pytest.raises(ArgumentError, match="got one at theta_1, which is learned"):
        gimli.unroll(**made, val_weights=learned, approximation=gimli.Truncated(3))


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "3"])
def test_bad_arguments(k: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Truncated\(steps\): expected a whole number k >= 1"):
        gimli.Truncated(k)
    with pytest.raises(ArgumentError, match="approximation: expected None, or one of"):
        gimli.meta_gradient(**arguments("sgd"), approximation=k)


def test_first_order_without_phi_loss_needs_no_second_derivative() -> None:
    """No graph is kept, and a loss that has no double backward will do; a phi_loss brings line 13, which needs one."""
    seen: list[Any] = []
    made = arguments("adam", with_phi=False)
    gimli.meta_gradient(
        **made, approximation=gimli.FirstOrder(), watch=lambda event: seen.append(event.inputs.get("graph"))
    )
    assert [graph for graph in seen if graph is not None] == []

    def once(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return torch.nn.functional.ctc_loss(
            theta["w"].log_softmax(-1), torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2]), reduction="sum"
        )

    problem = gimli.Problem(once, lambda theta, phi, batch: theta["w"].square().sum(), SGD(lr=0.1))
    made = {"theta_0": {"w": torch.randn(6, 1, 4)}, "train_batches": [None] * 2, "val_batch": None}
    with pytest.raises(RequirementError, match="requirement II fails"):
        gimli.meta_gradient(problem, **made)
    result = gimli.meta_gradient(problem, **made, approximation=gimli.FirstOrder())
    assert torch.equal(result.B_0["w"], 2 * result.theta_J["w"])
    with pytest.raises(RequirementError, match="requirement II fails"):
        gimli.meta_gradient(
            gimli.Problem(lambda theta, phi, batch: phi["c"] * once(theta, phi, batch), problem.val_loss, SGD(lr=0.1)),
            **made,
            approximation=gimli.FirstOrder(),
            phi_loss={"c": 0.5},
        )


def test_first_order_takes_one_evaluation_a_step() -> None:
    calls = {"n": 0}

    def counted(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        calls["n"] += 1
        return train_loss(theta, phi, batch)

    made = arguments("adam", with_phi=False)
    made["problem"] = gimli.Problem(counted, val_loss, Adam())
    for memory in (RetainGraphs(), Checkpoint(J, gradients=True)):
        calls["n"] = 0
        gimli.meta_gradient(**made, approximation=gimli.FirstOrder(), memory=memory, check=False)
        assert calls["n"] == J


@pytest.mark.parametrize("memory", [RetainGraphs(), StoreStates(), Checkpoint(1)], ids=str)
def test_the_first_steps_keep_nothing(memory: Schedule) -> None:
    made = arguments("adam")
    holds = []
    inputs = prepare(Call(**made, approximation=gimli.Truncated(2)))
    execution = ScheduledRun(inputs, memory, EagerSteps())
    for event in execution.forward():
        holds.append((event.j, [*execution.in_memory[0], *execution.in_memory[1]]))
    assert all(held == [] for j, held in holds if j < J - 2)
    assert min(step for _, held in holds for step in held) == J - 2


def test_unroll_and_resume(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = arguments("adam", warm=True)
    options = {"approximation": gimli.Truncated(3) & gimli.FirstOrder()}
    expected = gimli.meta_gradient(**made, **options)
    theta_0 = {k: v.clone().requires_grad_() for k, v in made["theta_0"].items()}
    L, trajectory = gimli.unroll(**{**made, "theta_0": theta_0}, **options, with_trajectory=True)
    L.backward()
    assert all(torch.equal(v.grad, expected.B_0[k]) for k, v in theta_0.items() if v.grad is not None)
    assert theta_0["w"].grad is not None
    assert trajectory.approximation == expected.approximation

    monkeypatch.setattr("gimli_core.runs.journal.SECONDS", 0.0)
    for memory in (RetainGraphs(), StoreStates(), Checkpoint(2), Budget("1GB")):
        for line, j in ((6, 1), (6, 4), (14, 4)):

            def kill(event: Any, line: int = line, j: int = j) -> None:
                if (event.line, event.j) == (line, j):
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                gimli.meta_gradient(**made, **options, memory=memory, resume=tmp_path / "run", watch=kill)
            again = gimli.meta_gradient(**made, **options, memory=memory, resume=tmp_path / "run")
            assert identical(flat_results(again), flat_results(expected))


def test_a_budget_is_for_the_steps_that_are_swept() -> None:
    """The bytes that no schedule for 40 steps could keep are enough for the last 2 of them."""
    width = 400

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (theta["w"] @ batch).tanh().square().mean()

    problem = gimli.Problem(loss, loss, Adam(lr=0.01))
    made = {"theta_0": {"w": torch.randn(width, width)}, "val_batch": torch.randn(width), "phi_opt": {"lr": 0.01}}
    few = gimli.plan(problem, train_batches=[torch.randn(width)] * 3, **made)
    size = few.least + 2 * few.costs.point
    found = gimli.meta_gradient(
        problem,
        train_batches=[torch.randn(width)] * 40,
        **made,
        approximation=gimli.Truncated(2),
        memory=Budget(size),
        check=False,
    )
    assert found.approximation.startswith("truncated: the last 2 of 40 steps")
    with pytest.raises(ArgumentError, match=r"expected at least .* for 2 steps"):
        gimli.meta_gradient(
            problem,
            train_batches=[torch.randn(width)] * 40,
            **made,
            approximation=gimli.Truncated(2),
            memory=Budget("1KB"),
            check=False,
        )


def test_truncated_runs_are_not_compiled_whole() -> None:
    with pytest.raises(ArgumentError, match="compile: expected 'steps' or True beside memory=, resume= or Truncated"):
        gimli.meta_gradient(**arguments("sgd"), approximation=gimli.Truncated(2), compile="whole")
