"""A meta-batch in one call equals the loop over its tasks, whatever they share."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import Checkpoint, RetainGraphs, Schedule, StoreStates
from gimli_core.meta_parameters import marks
from gimli_core.optimizers import SGD, Adam, ClipNorm, Lookahead, sam
from tests.problems import RULES, Rule

T, J = 3, 4
WEIGHTS = [0.3, 0.0, 0.2, 1.0]
SCHEDULES: list[Schedule] = [RetainGraphs(), StoreStates(), Checkpoint(2), Checkpoint(1, graphs=2, gradients=True)]


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    penalty = torch.stack([v.square().sum() for v in theta.values()]).sum()
    fit = torch.tanh(x @ theta["w"]) @ theta["v"] + theta["c"] - y
    return fit.square().mean() * phi["m"] + phi["l2"].exp() * penalty


def theta_0() -> dict[str, Tensor]:
    return {"w": torch.randn(3, 4), "v": torch.randn(4), "c": torch.tensor(0.3)}


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(T, 6, 3), torch.randn(T, 6)) for _ in range(count)]


def one_of(t: int, value: Any) -> Any:
    """What task t has: its slice of what is marked, all of the rest."""
    if isinstance(value, marks.PerTask):
        return slices(t, value.value)
    return {k: one_of(t, v) for k, v in value.items()} if isinstance(value, dict) else value


def slices(t: int, value: Any) -> Any:
    if isinstance(value, marks.PerStep):
        return gimli.per_step(slices(t, value.value))
    if isinstance(value, dict):
        return {k: v if k == "step" else slices(t, v) for k, v in value.items()}
    return value[t]


def by_loop(given: dict[str, Any]) -> list[gimli.MetaGradient]:
    """A call for each task."""
    found = []
    may_own = [k for k in ("theta_0", "phi_opt", "phi_loss", "state_0") if given.get(k) is not None]
    for t in range(T):
        own = {k: one_of(t, given[k]) for k in may_own}
        train = [tuple(x[t] for x in batch) for batch in given["train_batches"]]
        val = tuple(x[t] for x in given["val_batch"])
        found.append(gimli.meta_gradient(**{**given, **own, "train_batches": train, "val_batch": val}))
    return found


def agree(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def shared(parts: list[Tensor], reduce: str) -> Tensor:
    total = torch.stack(parts).sum(0)
    return total / T if reduce == "mean" else total


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_over_tasks_equals_the_loop(rule: Rule) -> None:
    phi_loss = {"m": torch.tensor(1.2), "l2": torch.tensor(-2.0)}
    problem = gimli.Problem(loss, loss, rule.optimizer)
    given = {
        "problem": problem,
        "theta_0": theta_0(),
        "train_batches": batches(J),
        "val_batch": batches(1)[0],
        "phi_opt": {k: torch.tensor(v) for k, v in rule.learned.items()},
        "phi_loss": phi_loss,
        "val_weights": WEIGHTS,
    }
    alone, together = by_loop(given), gimli.meta_gradient(**given, tasks=T)
    agree(together.task_val_losses, torch.stack([r.val_loss for r in alone]))
    agree(together.train_losses, torch.stack([r.train_losses for r in alone], 1))
    agree(together.val_loss, shared([r.val_loss for r in alone], "mean"))
    for part in ("A_opt", "A_loss", "B_0"):
        for k, found in getattr(together, part).items():
            agree(found, shared([getattr(r, part)[k] for r in alone], "mean"))
    for k, found in together.theta_J.items():
        agree(found, torch.stack([r.theta_J[k] for r in alone]))
    for slot, held in together.state_J.items():
        for k, found in held.items() if slot != "step" else ():
            agree(found.expand(T, *alone[0].state_J[slot][k].shape), torch.stack([r.state_J[slot][k] for r in alone]))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_what_each_task_has_of_its_own(schedule: Schedule, reduce: str, chunk: int | None) -> None:
    rates, start = torch.rand(T, J) * 0.1, {k: torch.stack([v, v + 0.1, v - 0.1]) for k, v in theta_0().items()}
    state_0 = {
        "step": torch.tensor(3.0, dtype=torch.float64),
        **{slot: {k: torch.rand_like(v) for k, v in start.items()} for slot in ("exp_avg", "exp_avg_sq")},
    }
    given = {
        "problem": gimli.Problem(loss, loss, Adam(lr=0.05)),
        "theta_0": gimli.per_task(start),
        "train_batches": batches(J),
        "val_batch": batches(1)[0],
        "val_weights": WEIGHTS,
        "memory": schedule,
        "phi_opt": {
            "lr": gimli.per_task(gimli.per_step(rates)),
            "beta1": {"w": gimli.per_task(torch.rand(T)), "v": torch.tensor(0.8), "c": torch.tensor(0.9)},
        },
        "phi_loss": {"m": gimli.per_task(torch.rand(T)), "l2": torch.tensor(-2.0)},
        "state_0": gimli.per_task(state_0),
    }
    alone, together = by_loop(given), gimli.meta_gradient(**given, tasks=gimli.Tasks(T, reduce, chunk))
    scale = 1 / T if reduce == "mean" else 1.0
    agree(together.A_opt["lr"], torch.stack([r.A_opt["lr"] for r in alone]) * scale)
    agree(together.A_opt["beta1"]["w"], torch.stack([r.A_opt["beta1"]["w"] for r in alone]) * scale)
    agree(together.A_opt["beta1"]["v"], shared([r.A_opt["beta1"]["v"] for r in alone], reduce))
    agree(together.A_loss["m"], torch.stack([r.A_loss["m"] for r in alone]) * scale)
    agree(together.A_loss["l2"], shared([r.A_loss["l2"] for r in alone], reduce))
    for k in start:
        agree(together.B_0[k], torch.stack([r.B_0[k] for r in alone]) * scale)
        for slot in ("exp_avg", "exp_avg_sq"):
            agree(together.S_0[slot][k], torch.stack([r.S_0[slot][k] for r in alone]) * scale)
    agree(together.val_losses.nan_to_num(), torch.stack([r.val_losses for r in alone], 1).nan_to_num())


@pytest.mark.parametrize("wrap", [lambda rule: ClipNorm(rule, max_norm=0.1), lambda rule: Lookahead(rule, every=2)])
def test_rules_that_couple_tensors_do_not_couple_tasks(wrap: Callable[[Any], Any]) -> None:
    phi_loss = {"m": torch.tensor(1.2), "l2": torch.tensor(-2.0)}
    given = {
        "problem": gimli.Problem(loss, loss, wrap(SGD(lr=0.1))),
        "theta_0": theta_0(),
        "train_batches": batches(J),
        "val_batch": batches(1)[0],
        "phi_opt": {"lr": torch.tensor(0.1)},
        "phi_loss": phi_loss,
    }
    alone, together = by_loop(given), gimli.meta_gradient(**given, tasks=gimli.Tasks(T, "sum"))
    agree(together.A_opt["lr"], shared([r.A_opt["lr"] for r in alone], "sum"))
    for k in together.B_0:
        agree(together.B_0[k], shared([r.B_0[k] for r in alone], "sum"))


@pytest.mark.parametrize("chunk", [None, 2])
def test_unroll_carries_the_gradients_of_tasks_on(chunk: int | None) -> None:
    rates = torch.tensor([0.1, 0.2, 0.15], requires_grad=True)
    l2 = torch.tensor(-2.0, requires_grad=True)
    weights = torch.tensor(WEIGHTS, requires_grad=True)
    start = {k: v.requires_grad_() for k, v in theta_0().items()}
    given = {
        "problem": gimli.Problem(loss, loss, SGD()),
        "train_batches": batches(J),
        "val_batch": batches(1)[0],
    }
    made = {"theta_0": start, "phi_loss": {"m": torch.tensor(1.0), "l2": l2}, "val_weights": weights}
    gimli.unroll(**given, **made, phi_opt={"lr": gimli.per_task(rates)}, tasks=gimli.Tasks(T, chunk=chunk)).backward()
    leaves = [rates, l2, weights, *start.values()]
    found = [leaf.grad.clone() for leaf in leaves]
    total = torch.zeros(())
    for t in range(T):
        own = {
            "train_batches": [tuple(x[t] for x in b) for b in given["train_batches"]],
            "val_batch": tuple(x[t] for x in given["val_batch"]),
        }
        total = total + gimli.unroll(**{**given, **own}, **made, phi_opt={"lr": rates[t]}) / T
    for a, b in zip(found, torch.autograd.grad(total, leaves), strict=True):
        agree(a, b)


def test_frozen_entries_are_shared() -> None:
    start = {k: nn.Parameter(v, requires_grad=k != "w") for k, v in theta_0().items()}
    phi_loss = {"m": torch.tensor(1.2), "l2": torch.tensor(-2.0)}
    given = {
        "problem": gimli.Problem(loss, loss, SGD(lr=0.1)),
        "theta_0": start,
        "train_batches": batches(J),
        "val_batch": batches(1)[0],
        "phi_loss": phi_loss,
    }
    alone = by_loop(given)
    for chunk in (None, 1):
        together = gimli.meta_gradient(**given, tasks=gimli.Tasks(T, chunk=chunk))
        agree(together.theta_J["w"], start["w"].detach())
        agree(together.theta_J["v"], torch.stack([r.theta_J["v"] for r in alone]))
        agree(together.B_0["v"], shared([r.B_0["v"] for r in alone], "mean"))


@pytest.mark.parametrize("kind", ["branch", "sam"])
def test_a_loss_that_vmap_refuses_runs_task_by_task(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def branches(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        found = loss(theta, phi, batch)
        return 2 * found if found.item() > 1 else found

    phi_loss = {"m": torch.tensor(1.2), "l2": torch.tensor(-2.0)}
    given = {
        "problem": gimli.Problem(branches if kind == "branch" else sam(loss, rho=0.1), loss, SGD(lr=0.1)),
        "theta_0": theta_0(),
        "train_batches": batches(J),
        "val_batch": batches(1)[0],
        "phi_loss": phi_loss,
    }
    alone, together = by_loop(given), gimli.meta_gradient(**given, tasks=T)
    assert [r.message for r in caplog.records if "train_loss runs one task after the other" in r.message]
    for k in together.B_0:
        agree(together.B_0[k], shared([r.B_0[k] for r in alone], "mean"))


def test_each_task_draws_its_own_dropout() -> None:
    def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (nn.functional.dropout(batch, 0.5) @ theta["w"]).square().mean()

    x = torch.ones(T, 50, 3)
    problem = gimli.Problem(noisy, noisy, SGD(lr=0.1))
    results = []
    for schedule in SCHEDULES:
        torch.manual_seed(0)
        results.append(gimli.meta_gradient(problem, {"w": torch.ones(3)}, [x] * 3, x, tasks=T, memory=schedule))
    assert len(set(results[0].train_losses[0].tolist())) == T
    for other in results[1:]:
        assert torch.equal(other.B_0["w"], results[0].B_0["w"])


def call(**changed: Any) -> gimli.MetaGradient:
    given: dict[str, Any] = {
        "problem": gimli.Problem(loss, loss, SGD(lr=0.1)),
        "theta_0": theta_0(),
        "train_batches": batches(J),
        "val_batch": batches(1)[0],
        "phi_loss": {"m": torch.tensor(1.2), "l2": torch.tensor(-2.0)},
        "tasks": T,
    }
    return gimli.meta_gradient(**{**given, **changed})


CHUNKS = gimli.Tasks(3, chunk=2)
LARGE = {"a": torch.zeros(()).expand(10**6)}  # on no machine is there room for that of so many tasks


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tasks": 0}, r"tasks: expected a whole number T >= 1"),
        ({"tasks": 2.0}, r"tasks: expected a whole number T >= 1"),
        ({"tasks": 10**30}, r"tasks: expected a whole number T >= 1 and below 2[*]{2}31"),
        ({"tasks": 10**9}, r"the batch of train_loss: expected tensors with a leading dimension of 1000000000 tasks"),
        (
            {"tasks": gimli.Tasks(10**9, chunk=1)},
            r"with a leading dimension of 1000000000 tasks; got one of shape \[3, 6",
        ),
        (
            {
                "tasks": 10**9,
                "train_batches": lambda j: torch.ones(3),
                "val_batch": lambda j: torch.ones(3),
                "steps": J,
            },
            r"the batch of train_loss: expected tensors with a leading dimension of 1000000000 tasks; got",
        ),
        (
            {"tasks": 2 * 10**9, "theta_0": LARGE, "train_batches": lambda j: None, "val_batch": None, "steps": J},
            r"tasks: expected a number for which theta_J of all tasks fit into memory, [\d.]+ GiB; got 2000000000",
        ),
        (
            {
                "tasks": gimli.Tasks(2 * 10**9, chunk=1),
                "theta_0": LARGE,
                "train_batches": lambda j: None,
                "val_batch": None,
                "steps": J,
            },
            r"tasks: expected a number for which theta_J of all tasks fit into memory",
        ),
        (
            {
                "tasks": gimli.Tasks(2 * 10**9, chunk=1),
                "theta_0": {"a": torch.zeros((), dtype=torch.float16)},
                "train_batches": lambda j: None,
                "val_batch": None,
                "steps": J,
            },
            r"tasks: expected a number for which the calls of so many chunks fit into memory",
        ),
        ({"train_batches": lambda j: batches(1)[0], "steps": 10**14}, r"the losses of so many steps fit into memory"),
        ({"tasks": 4}, r"expected tensors with a leading dimension of 4 tasks; got one of shape \[3, 6, 3\]"),
        ({"tasks": gimli.Tasks(2, chunk=1)}, r"tensors with a leading dimension of 2 tasks; got one of shape \[3"),
        ({"tasks": CHUNKS, "phi_opt": {"lr": gimli.per_task(torch.ones(5))}}, r"phi_opt\['lr'\]: expected .* 3 tasks"),
        ({"tasks": CHUNKS, "resume": "runs"}, r"Give one of chunk= and resume="),
        ({"theta_0": gimli.per_task({"w": torch.ones(2, 3, 4)})}, r"theta_0\['w'\]: expected .* 3 tasks"),
        ({"tasks": None, "theta_0": gimli.per_task({"w": torch.ones(2, 3, 4)})}, r"tasks: expected tasks=T beside"),
        ({"phi_opt": {"lr": gimli.per_task(torch.ones(2))}}, r"phi_opt\['lr'\]: expected a leading dimension of 3"),
        ({"phi_loss": {"m": gimli.per_task(torch.ones(2)), "l2": torch.ones(())}}, r"phi_loss\['m'\]: expected"),
    ],
)
def test_bad_input(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        call(**changed)


def test_a_task_that_breaks_is_named_with_its_step() -> None:
    x = batches(J)
    x[2][0][1] = float("inf")
    with pytest.raises(gimli.errors.NotFiniteError, match=r"train_loss at inner step j = 2"):
        call(train_batches=x)


def test_what_is_made_for_a_problem_goes_with_it() -> None:
    class Work:
        def __init__(self) -> None:
            self.problem = gimli.Problem(self.loss, self.loss, SGD(lr=0.1))

        def loss(self, theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
            return ((theta["w"] - batch) ** 2).sum()

    work, x = Work(), torch.ones(2, 3)
    gimli.meta_gradient(work.problem, {"w": torch.zeros(3)}, [x] * 2, x, tasks=2)
    assert work.problem.memo.forms
    gone = weakref.ref(work.problem)
    del work
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: gimli.Tasks(10**30, chunk=1), r"Tasks\(count=…\): expected a whole number of tasks below 2[*]{2}31"),
        (lambda: gimli.Tasks(3, reduce="max"), r"Tasks\(reduce=…\): expected 'mean', 'sum'; got 'max'"),
        (lambda: gimli.Tasks(3, chunk=0), r"Tasks\(chunk=…\): expected a whole number of tasks that are run at a time"),
        (
            lambda: gimli.Tasks(0),
            r"Tasks\(count=…\): expected a whole number of tasks below 2[*]{2}31, at least 1; got 0",
        ),
    ],
)
def test_a_number_of_tasks_that_makes_no_sense(made: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        made()
