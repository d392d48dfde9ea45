"""Calls that only one rank of two gets wrong, as a newcomer would: each ends all ranks with a clear error, in time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

import gimli_core as gimli
from gimli_core.optimizers import SGD
from tests.processes.cases import call, inner, mean_square, part_of, val_loss
from tests.processes.launching import results_on_ranks

J, T = 2, 2


def raising(event: Any) -> None:
    raise RuntimeError("the callback's own")


def said(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def odd() -> dict[str, str]:
    """Rank 1 does something else, one call after the other, in one group."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    other, plain = rank == 1, gimli.Problem(mean_square, val_loss, SGD())
    whole = inner(J)
    cut = [part_of(batch, rank, size) for batch in whole.batches]
    given = whole._replace(batches=cut, val_batch=part_of(whole.val_batch, rank, size))
    tasks = inner(J, T)

    def keyed(theta: Any, phi: Any, batch: Any) -> Tensor:
        return mean_square(theta, phi, (batch["x"], batch["y"]))

    def failing(theta: Any, phi: Any, batch: Any) -> Tensor:
        if other:
            raise KeyError("no such label")
        return val_loss(theta, phi, batch)

    keys = given._replace(batches=[{"z" if other else "x": x, "y": y} for x, y in cut])
    low = given._replace(theta_0={k: v.float() if other else v for k, v in given.theta_0.items()})
    fewer = inner(J, T - other)
    some = given._replace(batches=cut[: J - other])
    lr = {"lr": 0.1}
    data: dict[str, Any] = {"mesh": "data"}
    works: dict[str, Callable[[], Any]] = {
        "keys": lambda: call(gimli.Problem(keyed, val_loss, SGD()), keys, lr, **data),
        "dtype": lambda: call(plain, low, lr, **data),
        "steps": lambda: call(plain, some, lr, **data),
        "tasks": lambda: call(plain, fewer, lr, tasks=T - other, mesh="tasks"),
        "val_loss": lambda: call(gimli.Problem(mean_square, failing, SGD()), tasks, lr, tasks=T, mesh="tasks"),
        "watch, tasks": lambda: call(plain, tasks, lr, tasks=T, mesh="tasks", watch=None if other else raising),
        "schedule": lambda: call(plain, given, lr, **data, memory=gimli.memory.StoreStates() if other else None),
        "chunk": lambda: call(plain, tasks, lr, tasks=gimli.Tasks(T, chunk=2), mesh="tasks"),
        "well": lambda: call(plain, given, lr, **data),
        "watch, data": lambda: call(
            plain, given, lr, **data, watch=None if other else raising
        ),  # the last: its group is left in the middle
    }
    return {name: said(work) for name, work in works.items()}


def test_what_one_rank_gets_wrong_ends_all_in_time(tmp_path: Path) -> None:
    first, second = results_on_ranks(2, odd, directory=tmp_path, timeout=8.0)
    for told in (first, second):
        for name, argument in (("steps", "steps"), ("tasks", "tasks"), ("schedule", "memory")):
            assert told[name].startswith(f"ArgumentError: {argument}: expected the same on all ranks")
        assert told["chunk"] == told["well"] == "nothing"
    assert "rank 1 of 'data' raised RuntimeError: expected m1 and m2 to have the same dtype" in first["dtype"]
    assert "KeyError: 'x'" in second["keys"]
    assert "rank 1 of 'data' raised KeyError: 'x'" in first["keys"]
    assert "KeyError: 'no such label'" in second["val_loss"]
    assert "rank 1 of" in first["val_loss"]
    for name in ("watch, data", "watch, tasks"):
        assert first[name] == "RuntimeError: the callback's own"
        assert "rank 0" in second[name]
        assert "RuntimeError: the callback's own" in second[name]


def without_examples() -> dict[str, str]:
    """Losses and batches with no dimension of examples, on all ranks alike."""
    theta, lr = {"w": torch.ones(2)}, {"lr": torch.tensor(0.1)}

    def whole(theta: Any, phi: Any, batch: Any) -> Tensor:
        return ((theta["w"] - batch) ** 2).sum()

    def ended(batch: Any, **more: Any) -> str:
        problem = gimli.Problem(whole, whole, SGD())
        return said(lambda: gimli.meta_gradient(problem, theta, [batch] * J, batch, phi_opt=lr, mesh="data", **more))

    one = torch.tensor(3.0)
    return {
        "a number": ended(one),
        "a number, unchecked": ended(one, check=False),
        "a number with its weight": ended(gimli.Share(one, 1.0)),
        "a vector as long as theta": ended(torch.ones(2)),
        "the same, unchecked": ended(torch.ones(2), check=False),
    }


def test_what_has_no_dimension_of_examples_is_refused_on_every_rank(tmp_path: Path) -> None:
    """In words of this package, with what to do; what is said to do does."""
    first, second = results_on_ranks(2, without_examples, directory=tmp_path, timeout=8.0)
    assert first == second
    for name in ("a number", "a number, unchecked"):
        assert "a rank's part of a batch: expected tensors with one number of examples" in first[name]
        assert "got shapes [[]]" in first[name]
        assert "gimli.Share(batch, weight)" in first[name]
    told = first["a vector as long as theta"]
    assert "train_loss on all the parts of ranks together: expected a loss of any number of examples" in told
    assert "check=False goes on" in told
    for name in ("a number with its weight", "the same, unchecked"):
        assert first[name] == "nothing"
