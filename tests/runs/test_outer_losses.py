"""A vector of outer losses: one run, and for each of them the bits that a call of its own would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import gimli_core as gimli
from gimli_core.errors import ArgumentError, ClosedError, NotFiniteError
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.memory.files import read_file
from gimli_core.memory.meters import LiveBytes
from gimli_core.memory.schedules.budget import choose, estimate, least
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from tests.compare import agree, distance, entries, identical
from tests.killing import Killed, stopping, until_through
from tests.problems import (
    RULES,
    SCHEDULES,
    Rule,
    arguments,
    coupled_cubic,
    network_with_dropout,
    question,
    tanh_loss,
    tanh_network,
)

Call = dict[str, Any]
BY_NAME = {rule.name: rule for rule in RULES}


def several(loss: Callable[..., Tensor], k: int) -> Callable[..., Tensor]:
    """k losses: `loss` at k multiples of theta."""

    def of_all(theta: Any, phi: Any, batch: Any) -> Tensor:
        return torch.stack([loss({n: (1 + 0.2 * i) * v for n, v in theta.items()}, phi, batch) for i in range(k)])

    return of_all


def with_val_loss(call: Call, loss: Callable[..., Tensor]) -> Call:
    problem = call["problem"]
    made = gimli.Problem(problem.train_loss, loss, problem.optimizer, problem.modules)
    return {**call, "problem": made}


def row_of(call: Call, i: int) -> Call:
    """The call of outer loss i alone."""
    of_all = call["problem"].val_loss
    return with_val_loss(call, lambda theta, phi, batch: of_all(theta, phi, batch)[i])


def run(call: Call, **more: Any) -> gimli.MetaGradient:
    torch.manual_seed(5)
    return gimli.meta_gradient(**{**call, **more})


def rows(result: gimli.MetaGradient) -> list[dict[str, Any]]:
    """What a vector's result says of each of its losses."""
    names = ("A_opt", "A_loss", "B_0", "S_0")
    return [
        {"L": result.val_loss[i], **{n: tree_map(lambda x, i=i: x[i], getattr(result, n)) for n in names}}
        for i in range(len(result.val_loss))
    ]


def alone(result: gimli.MetaGradient) -> dict[str, Any]:
    return {"L": result.val_loss, **{n: getattr(result, n) for n in ("A_opt", "A_loss", "B_0", "S_0")}}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return identical(a, b)


def cubic(rule: Rule, k: int, start: str = "cold", **more: Any) -> Call:
    """Losses along the way, tensors of every layout."""
    made = arguments(rule, coupled_cubic, start)
    return {**with_val_loss(made, several(made["problem"].val_loss, k)), **more}


def dropout(k: int) -> Call:
    """Random masks in the inner loss; L_val sees phi_loss."""
    made = arguments(BY_NAME["adamw"], network_with_dropout, "cold")
    return with_val_loss(made, several(made["problem"].val_loss, k))


def normalised(k: int) -> Call:
    """Buffers that move, and random masks, in both losses."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
    x, y = torch.randn(5, 8, 4), torch.randint(3, (5, 8))

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        out = torch.func.functional_call(net, theta, (batch[0],))
        return (
            F.cross_entropy(out, batch[1]) + phi["l2"] * torch.stack([v.square().sum() for v in theta.values()]).sum()
        )

    return {
        "problem": gimli.Problem(loss, several(loss, k), gimli.optimizers.Adam()),
        "theta_0": {n: v.detach() for n, v in net.named_parameters()},
        "train_batches": list(zip(x[:4], y[:4], strict=True)),
        "val_batch": (x[4], y[4]),
        "phi_opt": {"lr": torch.linspace(0.01, 0.02, 4)},
        "phi_loss": {"l2": torch.tensor(0.01)},
        "val_weights": [0.0, 0.5, 0.0, 1.0],
    }


def checkpointed(k: int) -> Call:
    """Work that is put off until backward, and so is done again for each pass through the graph."""
    torch.manual_seed(2)
    first, last = nn.Linear(4, 6), nn.Linear(6, 1)

    def loss(theta: Any, phi: Any, batch: Tensor) -> Tensor:
        hidden = torch.func.functional_call(first, {n: theta[f"first.{n}"] for n in ("weight", "bias")}, (batch,))
        hidden = torch.utils.checkpoint.checkpoint(torch.tanh, hidden, use_reentrant=False)
        out = torch.func.functional_call(last, {n: theta[f"last.{n}"] for n in ("weight", "bias")}, (hidden,))
        return out.square().mean()

    theta_0 = {f"{n}.{k}": v.detach() for n, m in (("first", first), ("last", last)) for k, v in m.named_parameters()}
    problem = gimli.Problem(loss, several(loss, k), gimli.optimizers.SGD(momentum=0.9))
    x = torch.randn(4, 5, 4)
    return {"problem": problem, "theta_0": theta_0, "train_batches": x[:3], "val_batch": x[3], "phi_opt": {"lr": 0.1}}


def tanh(optimizer: Any, k: int, **more: Any) -> Call:
    """On one vector of all tensors, where the rule is elementwise."""
    torch.manual_seed(3)
    return with_val_loss(tanh_network(optimizer, **more), several(tanh_loss, k))


CASES: dict[str, Callable[[int], Call]] = {
    "adam": lambda k: cubic(BY_NAME["adam"], k),
    "nesterov, warm": lambda k: cubic(BY_NAME["nesterov"], k, "warm"),
    "lamb": lambda k: cubic(BY_NAME["lamb"], k),
    "adagrad": lambda k: cubic(BY_NAME["adagrad"], k),
    "dropout": dropout,
    "batch norm": normalised,
    "work put off": checkpointed,
    "one vector": lambda k: tanh(gimli.optimizers.AdamW(amsgrad=True), k, phi_opt={"lr": 0.05, "betas": (0.8, 0.9)}),
    "tasks": lambda k: tanh(gimli.optimizers.Adam(), k, tasks=3, phi_opt={"lr": gimli.per_task(torch.ones(3) / 9)}),
    "tasks, rule of tensors": lambda k: tanh(
        gimli.optimizers.ClipNorm(gimli.optimizers.SGD(), max_norm=0.5), k, tasks=2, phi_opt={"lr": 0.1}
    ),
    "forward over reverse": lambda k: tanh(gimli.optimizers.Adam(lr=0.1), k, second_order="forward_over_reverse"),
    "first order": lambda k: tanh(gimli.optimizers.Adam(lr=0.1), k, approximation=gimli.FirstOrder()),
    "truncated": lambda k: cubic(BY_NAME["adam"], k, approximation=gimli.Truncated(2), val_weights=[0, 0, 0, 1.0, 1.0]),
    "no steps": lambda k: {**tanh(gimli.optimizers.Adam(lr=0.1), k), "steps": 0},
}
every_case = pytest.mark.parametrize("case", CASES)


QUICK = ("adam", "batch norm")  # under every schedule but a budget; the others with what is kept and what is not
TABLE = [
    pytest.param(
        case, memory, marks=() if i in (0, 3) or (case in QUICK and i < 8) else pytest.mark.long, id=f"{case}-{memory}"
    )
    for case in CASES
    for i, memory in enumerate(SCHEDULES)
]


@pytest.mark.parametrize(("case", "memory"), TABLE)
def test_a_row_has_the_bits_of_a_call_of_its_own(case, memory):
    for k in (1, 3):
        call = CASES[case](k)
        found = run(call, memory=memory)
        assert found.val_loss.shape == (k,)
        for i, row in enumerate(rows(found)):
            single = run(row_of(call, i), memory=memory)
            assert same(row, alone(single)), (k, i)
            assert torch.equal(found.train_losses, single.train_losses)
            assert identical(found.val_losses[..., i], single.val_losses)


@pytest.mark.parametrize("rule", ["adam", "nesterov", "lamb", "rmsprop", "lion"])
def test_rows_against_autograd(rule):
    call = cubic(BY_NAME[rule], 3)
    found = run(call)
    for i in range(3):
        asked = question(row_of(call, i))
        truth = autograd_gradient(asked, asked.environment()).gradient
        one = gimli.results.MetaGradient(**{**vars(found), **{n: v for n, v in rows(found)[i].items() if n != "L"}})
        for key, value in entries(one, truth).items():
            assert distance(value, truth[key], floor=1e-3) < 1e-12, key


@every_case
def test_a_backward_along_any_cotangent_is_one_sweep(case):
    k = 3
    call, weights = CASES[case](k), torch.tensor([0.5, -2.0, 0.3])
    by_row = rows(run(call))
    for memory in (None, StoreStates(), Checkpoint(2)):
        if "second_order" in call and memory is None:
            continue
        leaves = {n: v.detach().clone().requires_grad_() for n, v in call["theta_0"].items()}
        phi = {n: v.detach().clone().requires_grad_() for n, v in call.get("phi_loss", {}).items()}
        swept = []
        torch.manual_seed(5)
        L = gimli.unroll(
            **{**call, "theta_0": leaves, "phi_loss": phi, "memory": memory},
            watch=lambda event, swept=swept: swept.append(event.j) if event.line == 14 else None,
        )
        assert L.shape == (k,)
        (weights * L).sum().backward()
        J = len(range(call.get("steps", 4) or 0))
        assert len(swept) <= max(J, 5)
        assert len(swept) == len(set(swept))  # a pass for each step
        for name, found in (("B_0", leaves), ("A_loss", phi)):
            for n, leaf in found.items():
                expected = sum(w * row[name][n] for w, row in zip(weights, by_row, strict=True))
                assert distance(leaf.grad, expected, floor=1e-3) < 1e-12, (name, n, memory)


def test_unroll_ties_weights_and_what_made_them():
    call = cubic(BY_NAME["adam"], 2)
    call["val_weights"] = w = torch.tensor([0.1, -0.4, 0.3, -0.2, 0.5, 0.4], requires_grad=True)
    log_lr = torch.tensor(0.05).log().requires_grad_()
    phi_opt = {**call["phi_opt"], "lr": log_lr.exp()}
    L = gimli.unroll(**{**call, "phi_opt": phi_opt})
    along = torch.tensor([0.7, -0.2])
    L.backward(along, retain_graph=True)
    single = gimli.meta_gradient(**{**call, "val_weights": w.detach()})
    assert distance(w.grad, single.val_losses[:, 0] * along[0] + single.val_losses[:, 1] * along[1]) < 1e-12
    assert distance(log_lr.grad, 0.05 * (single.A_opt["lr"] @ along)) < 1e-12
    L.backward(along)  # the same again is at hand
    with pytest.raises(RuntimeError):
        L.backward(along)


def test_another_cotangent_needs_another_run():
    call = tanh(gimli.optimizers.SGD(lr=0.1), 2)
    theta = {n: v.requires_grad_() for n, v in call["theta_0"].items()}
    L = gimli.unroll(**{**call, "theta_0": theta})
    L[0].backward(retain_graph=True)
    with pytest.raises(ClosedError, match="weights \\* losses"):
        L[1].backward()
    L, trajectory = gimli.unroll(**{**call, "theta_0": theta}, with_trajectory=True)
    assert torch.equal(trajectory.val_loss, L.detach())
    with torch.no_grad():
        assert torch.equal(gimli.unroll(**{**call, "theta_0": theta}), L.detach())


def test_unroll_leaves_the_environment_as_one_number_does():
    call = normalised(2)
    theta = {n: v.requires_grad_() for n, v in call["theta_0"].items()}
    left = []
    for one in (call, row_of(call, 0)):
        torch.manual_seed(7)
        L = gimli.unroll(**{**one, "theta_0": theta})
        between = torch.get_rng_state()
        L.sum().backward()
        assert torch.equal(torch.get_rng_state(), between)
        left.append(between)
    assert torch.equal(*left)


@pytest.mark.parametrize("memory", [RetainGraphs(), Checkpoint(2), Checkpoint(2, gradients=True, graphs=2)], ids=str)
@pytest.mark.parametrize("case", ["batch norm", "adam"])
def test_a_killed_run_goes_on(case, memory, tmp_path):
    call = CASES[case](3)
    expected = run(call)
    found = until_through(lambda: run(call, memory=memory, resume=tmp_path / "run"))
    assert all(same(a, b) for a, b in zip(rows(found), rows(expected), strict=True))


@pytest.mark.parametrize("memory", [RetainGraphs(), Checkpoint(2)], ids=str)
def test_a_killed_backward_goes_on_along_the_same_cotangent(memory, tmp_path):
    call = normalised(3)

    def grads(along: list[float], **more: Any) -> dict[str, Tensor]:
        torch.manual_seed(5)
        leaves = {n: v.detach().clone().requires_grad_() for n, v in call["theta_0"].items()}
        gimli.unroll(**{**call, "theta_0": leaves, **more}).backward(torch.tensor(along))
        return {n: v.grad for n, v in leaves.items()}

    expected = grads([1.0, 2.0, -1.0])
    in_sweep = False
    while not in_sweep:
        with stopping(), pytest.raises(Killed):
            grads([1.0, 2.0, -1.0], memory=memory, resume=tmp_path / "run")
        in_sweep = bool(read_file(tmp_path / "run" / "progress")[0]["along"])
    with pytest.raises(ArgumentError, match="the same gradient of L"):
        grads([0.0, 2.0, -1.0], memory=memory, resume=tmp_path / "run")
    assert same(until_through(lambda: grads([1.0, 2.0, -1.0], memory=memory, resume=tmp_path / "run")), expected)


def test_tasks_in_chunks():
    rates = gimli.per_task(torch.tensor([0.1, 0.2, 0.05]))
    call = tanh(gimli.optimizers.Adam(), 2, tasks=3, phi_opt={"lr": rates, "beta1": 0.8})
    whole = run(call)
    chunked = run(call, tasks=gimli.Tasks(3, chunk=2))
    assert chunked.A_opt["lr"].shape == (2, 3)
    assert whole.task_val_losses is not None
    assert whole.task_val_losses.shape == (3, 2)
    agree(chunked, whole, rtol=1e-12)
    theta = {n: v.clone().requires_grad_() for n, v in call["theta_0"].items()}
    along = torch.tensor([2.0, -1.0])
    gimli.unroll(**{**call, "theta_0": theta, "tasks": gimli.Tasks(3, chunk=2)}).backward(along)
    for n, v in theta.items():
        assert distance(v.grad, torch.tensordot(along, whole.B_0[n], 1)) < 1e-12


@pytest.mark.parametrize(("memory", "evaluations"), [(RetainGraphs(), 4), (StoreStates(), 8), (Checkpoint(1), 13)])
def test_one_forward_and_one_graph_a_step_for_all(memory, evaluations):
    counts = []
    for k in (1, 5):
        call, calls = tanh(gimli.optimizers.Adam(lr=0.1), k, check=False), []

        def counted(theta: Any, phi: Any, batch: Any, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return tanh_loss(theta, phi, batch)

        problem = gimli.Problem(counted, call["problem"].val_loss, call["problem"].optimizer)
        run({**call, "problem": problem}, memory=memory)
        counts.append(len(calls))
    assert counts[0] == counts[1] <= evaluations


def test_a_budget_counts_every_outer_loss():
    """What the rows take is in the prediction, and the run keeps to it."""
    torch.manual_seed(0)
    w = torch.randn(60, 60)
    steps = 12

    def train_loss(theta: Any, phi: Any, batch: Tensor) -> Tensor:
        return torch.tanh(theta["w"] @ batch).square().sum() + phi["c"] * theta["w"].square().sum()

    def call_of(k: int) -> Call:
        problem = gimli.Problem(train_loss, several(train_loss, k), gimli.optimizers.Adam(lr=0.01))
        return {
            "problem": problem,
            "theta_0": {"w": w},
            "train_batches": torch.randn(steps, 60, 8),
            "val_batch": torch.randn(60, 8),
            "phi_loss": {"c": torch.tensor(0.1)},
        }

    predicted = {}
    for k in (1, 6):
        costs = gimli.plan(**call_of(k)).costs
        schedule = choose(gimli.memory.Budget(least(steps, costs) + 4 * w.nbytes), steps, costs)
        predicted[k] = estimate(schedule, steps, costs)[0]
        meter = LiveBytes()
        with meter:
            run(call_of(k), memory=schedule, check=False)
        assert meter.peak <= predicted[k]
        assert costs.end >= (k - 1) * 3 * w.nbytes  # B, and both slots of S, for each
    assert predicted[6] > predicted[1] + 5 * 3 * w.nbytes


def test_watchers_see_every_row():
    call, seen = tanh(gimli.optimizers.SGD(lr=0.1), 3), []
    norms, lines = gimli.AdjointNorms(), []
    result = run(call, watch=lambda event: (seen.append((event.line, event.j, event.row, event.rows)), norms(event)))
    assert [line for line in seen if line[:2] == (14, 2)] == [(14, 2, i, 3) for i in range(3)]
    size = torch.stack([v.square().sum() for v in result.B_0.values()]).sum().sqrt()
    assert abs(norms.norms[0] - size.item()) < 1e-12
    progress = gimli.Progress(4, show=lines.append)
    run(call, watch=progress)
    assert lines == ["advanced 4/4, replayed 0, swept 4/4"]


def test_repr_tells_how_many():
    assert "[2 outer losses]" in repr(run(tanh(gimli.optimizers.SGD(lr=0.1), 2)))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda theta, phi, batch: theta["w"].sum() * torch.ones(0), "vector \\[k\\] of k >= 1 outer losses"),
        (lambda theta, phi, batch: theta["w"][:2, :2], "got a torch.float64 tensor of shape \\[2, 2\\]"),
    ],
)
def test_no_outer_loss_and_a_matrix_of_them_are_refused(loss, match, check):
    with pytest.raises(ArgumentError, match=match):
        run(with_val_loss(tanh(gimli.optimizers.SGD(lr=0.1), 1), loss), check=check)


def test_a_vector_is_refused_where_one_number_is_needed():
    call = tanh(gimli.optimizers.SGD(lr=0.1), 2)
    inner = gimli.Problem(several(tanh_loss, 2), tanh_loss, gimli.optimizers.SGD(lr=0.1))
    with pytest.raises(ArgumentError, match="train_loss: expected to return a scalar"):
        run({**call, "problem": inner})
    with pytest.raises(ArgumentError, match=r"one number for step_through; got a vector of 2 outer losses"):
        gimli.step_through(**call)


def test_an_outer_loss_that_is_not_finite_is_named():
    call = tanh(gimli.optimizers.SGD(lr=0.1), 1)
    loss = lambda theta, phi, batch: torch.stack([theta["c"], theta["c"] / 0.0])  # noqa: E731
    with pytest.raises(NotFiniteError, match=r"got (-?inf|nan) for outer loss 1 of 2"):
        run(with_val_loss(call, loss))
