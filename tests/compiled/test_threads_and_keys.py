"""One problem from many threads, batches with keys of any kind, and copies of a problem that has been compiled."""

from __future__ import annotations

import copy
import enum
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.compiled.compiler.trees_in_source import builder, taker
from gimli_core.optimizers import Adam
from tests.problems import needs_compiler


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    return (theta["w"] @ theta["v"] - batch).square().sum()


def theta_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.rand(2, 3, generator=generator), "v": torch.rand(3, generator=generator)}


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize("compile", ["whole", "steps", True])
def test_many_threads_have_the_numbers_of_one(compile: Any) -> None:
    problem, batches = gimli.Problem(loss, loss, Adam(lr=0.1)), list(torch.rand(4, 2))
    watch = (lambda event: None) if compile is True else None  # a step forwards and its sweep, not the whole run
    expected = {
        seed: gimli.meta_gradient(gimli.Problem(loss, loss, Adam(lr=0.1)), theta_of(seed), batches[:3], batches[3])
        for seed in range(40)
    }
    found: dict[int, gimli.MetaGradient] = {}
    failures: list[BaseException] = []

    def work(seeds: range) -> None:
        torch.set_default_dtype(torch.float64)
        try:
            for seed in seeds:
                found[seed] = gimli.meta_gradient(
                    problem, theta_of(seed), batches[:3], batches[3], compile=compile, watch=watch
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(range(first, 40, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(found) == 40
    for seed, result in found.items():
        torch.testing.assert_close(result.B_0, expected[seed].B_0, rtol=1e-10, atol=1e-12)


class Kind(enum.Enum):
    X = 1


class Code:
    """A key whose `repr` is code."""

    ran = False

    def __repr__(self) -> str:
        return "setattr(__import__('builtins'), 'gimli_ran', True)"


@pytest.mark.parametrize(
    "key", [Kind.X, np.int64(3), (1, Kind.X), Code(), 1.5, True, "a'b"], ids=lambda key: type(key).__name__
)
def test_any_key_is_a_key(key: Any) -> None:
    tree = {key: 1, "b": (2, [3])}
    assert taker(tree)({key: "x", "b": ("y", ["z"])}) == ["x", "y", "z"]
    assert builder(tree)(["x", "y", "z"]) == {key: "x", "b": ("y", ["z"])}
    import builtins

    assert not hasattr(builtins, "gimli_ran")


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize("key", [Kind.X, np.int64(3)])
def test_batches_with_such_keys_run(key: Any) -> None:
    def of_dict(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: dict[Any, Tensor]) -> Tensor:
        return loss(theta, phi, batch[key])

    batches = [{key: x} for x in torch.rand(3, 2)]
    problem = gimli.Problem(of_dict, of_dict, Adam(lr=0.1))
    found, expected = (
        gimli.meta_gradient(problem, theta_of(0), batches[:2], batches[2], compile=compile) for compile in (True, False)
    )
    torch.testing.assert_close(found.B_0, expected.B_0, rtol=1e-10, atol=1e-12)


def test_a_copy_of_a_problem_starts_with_nothing_made() -> None:
    problem = gimli.Problem(loss, loss, Adam(lr=0.1))
    gimli.meta_gradient(problem, theta_of(0), torch.rand(2, 2), torch.rand(2))
    assert problem.memo.recalled
    problem.memo.compiled.put((), threading.RLock())  # what is compiled holds locks, which cannot be copied
    assert not copy.deepcopy(problem).memo.recalled
    assert not copy.copy(problem.memo).compiled
    assert not pickle.loads(pickle.dumps(problem.memo)).compiled
