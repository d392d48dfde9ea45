"""A call like the last one takes over what depends on the arguments' form alone; every other difference is seen."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core import runs
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import SGD, Adam, ClipNorm, Optimizer

T, J = 3, 4


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (torch.tanh(x @ theta["w"]) @ theta["v"] - y).square().mean() + phi["l2"].exp() * theta["w"].square().sum()


def given(seed: int, tasks: int | None = T, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    lead = () if tasks is None else (tasks,)
    made = [
        (torch.randn(*lead, 6, 3, generator=generator), torch.randn(*lead, 6, generator=generator))
        for _ in range(J + 1)
    ]
    theta_0 = {"w": torch.randn(3, 4, generator=generator), "v": torch.randn(4, generator=generator)}
    return {
        "theta_0": theta_0, "train_batches": made[:-1], "val_batch": made[-1], "phi_opt": {"lr": 0.05},
        "phi_loss": {"l2": torch.randn((), generator=generator)}, **({"tasks": tasks} if tasks else {}), **more,
    }  # fmt: skip


def same(a: Any, b: Any) -> None:
    assert (a.approximation, a.recurrence) == (b.approximation, b.recurrence)
    for name in ("val_loss", "theta_J", "train_losses", "A_opt", "A_loss", "B_0", "S_0", "state_J", "val_losses"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that were prepared from the start."""
    calls: list[Any] = []
    plain = runs.prepare
    monkeypatch.setattr(runs, "prepare", lambda **arguments: (calls.append(arguments), plain(**arguments))[1])
    return calls


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adam(), ClipNorm(Adam(), max_norm=0.5)])
@pytest.mark.parametrize("tasks", [None, T])
def test_new_values_have_the_bits_of_a_new_problem(
    optimizer: Optimizer, tasks: int | None, prepared: list[Any]
) -> None:
    problem = gimli.Problem(loss, loss, optimizer)
    gimli.meta_gradient(problem, **given(0, tasks))
    prepared.clear()
    found = gimli.meta_gradient(problem, **given(1, tasks))
    assert len(prepared) == isinstance(optimizer, ClipNorm)  # which sees all tensors at once
    same(found, gimli.meta_gradient(gimli.Problem(loss, loss, optimizer), **given(1, tasks)))


ones = partial(torch.ones, dtype=torch.float64)
OTHERS: dict[str, dict[str, Any]] = {
    "another rate": {"phi_opt": {"lr": 0.1}},
    "a rate that is a tensor": {"phi_opt": {"lr": torch.tensor(0.1)}},
    "another hyperparameter": {"phi_opt": {"weight_decay": 0.1}},
    "none": {"phi_opt": None},
    "fewer steps": {"steps": 2},
    "the sum over tasks": {"reduce": "sum"},
    "fewer swept": {"truncate": 2},
    "first order": {"first_order": True},
    "the ablation": {"recurrence": "theta_only"},
    "other weights": {"val_weights": [1.0] * J},
    "other means": {"second_order": "forward_over_reverse"},
    "chunks": {"chunk": 2},
    "a schedule": {"memory": gimli.memory.Checkpoint(2)},
    "a tensor a task": {"phi_loss": {"l2": gimli.per_task(0 * ones(T))}},
    "a start a task": {"theta_0": gimli.per_task({"w": ones(T, 3, 4), "v": ones(T, 4)})},
    "another order": {"theta_0": {"v": ones(4), "w": ones(3, 4)}},
    "another shape": {"theta_0": {"w": ones(3, 1), "v": ones(1)}},
    "another dtype": {"theta_0": {"w": ones(3, 4).float(), "v": ones(4).float()}},
    "one frozen": {"theta_0": {"w": nn.Parameter(ones(3, 4)), "v": nn.Parameter(ones(4), False)}},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_form_is_prepared_anew(other: str) -> None:
    """Once before and once after, so that what is taken over is never another call's."""
    problem = gimli.Problem(loss, loss, Adam())
    changed = {**given(1), **OTHERS[other]}
    if other == "another dtype":
        for name in ("train_batches", "val_batch", "phi_loss"):
            changed[name] = torch.utils._pytree.tree_map(Tensor.float, changed[name])
    expected = gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **changed)
    first = gimli.meta_gradient(problem, **given(0))
    same(gimli.meta_gradient(problem, **changed), expected)
    same(gimli.meta_gradient(problem, **given(0)), first)
    same(gimli.meta_gradient(problem, **changed), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("theta_0", {"w": torch.full((3, 4), torch.nan), "v": torch.ones(4)}, r"theta_0\['w'\]: expected finite"),
        ("phi_loss", {"l2": torch.tensor(torch.inf)}, r"phi_loss\['l2'\]: expected finite"),
        ("train_batches", iter(()), "train_batches: expected a sequence"),
        ("steps", True, "steps: expected a whole number"),
        ("problem", None, "problem: expected a gimli.Problem"),
    ],
)
def test_bad_input_is_refused_at_the_second_call_too(name: str, value: Any, message: str) -> None:
    problem = gimli.Problem(loss, loss, Adam())
    arguments = {"problem": problem, **given(0), "steps": 1}
    gimli.meta_gradient(**arguments)
    with pytest.raises(ArgumentError, match=message):
        gimli.meta_gradient(**{**arguments, name: value})
    tied = torch.ones(4)
    with pytest.raises(ArgumentError, match="each tensor once"):
        gimli.meta_gradient(**{**arguments, "theta_0": {"w": tied, "v": tied}})
    with torch.inference_mode(), pytest.raises(ArgumentError, match="inference_mode"):
        gimli.meta_gradient(**arguments)


def test_what_a_caller_changes_in_place_is_not_taken_over() -> None:
    problem, phi_opt = gimli.Problem(loss, loss, Adam()), {"lr": 0.1}
    gimli.meta_gradient(problem, **given(0, phi_opt=phi_opt))
    phi_opt["beta2"] = 0.9
    again = given(0, phi_opt={"lr": 0.1})
    same(gimli.meta_gradient(problem, **again), gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **again))


def test_buffers_of_a_module_that_is_put_in_place_are_restored() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def of_net(theta: dict[str, Tensor], phi: Any, batch: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(net, theta, (batch,))
        return out.square().mean()

    problem = gimli.Problem(of_net, of_net, SGD(lr=0.1))
    theta_0 = {k: v.detach() for k, v in net.named_parameters()}
    batches = [torch.randn(6, 3) for _ in range(3)]
    gimli.meta_gradient(problem, theta_0, batches, batches[0])
    mean = net[1].running_mean = torch.ones(4)
    result = gimli.meta_gradient(problem, theta_0, batches, batches[0])
    assert net[1].running_mean is mean
    assert torch.equal(mean, torch.ones(4))
    assert not torch.equal(result.buffers_J["1.running_mean"], mean)
