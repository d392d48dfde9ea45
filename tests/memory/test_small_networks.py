"""A budget holds in a cold process, for a network of 370 numbers, of which graphs are more than all tensors, as for a
larger one: measured as a user would, by the most that the process ever occupied, libraries with it.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.memory.allocator import separates
from tests.cold import cold

PROGRAM = """
import sys, torch
import gimli_core as gimli

budget, steps, kind, width = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
draws = kind == "draws"
data = torch.zeros(5 << 18)  # 5 MiB, for the batches to keep

def batch(j):
    return (data, j)[1] if kind == "keeps" else None
torch.set_num_threads(1)
torch.manual_seed(0)
theta = {k: torch.randn(*shape) / width**0.5
         for k, shape in {"a": (width // 2, width), "b": (width,), "c": (width, 7), "d": (7,)}.items()}
x, y = torch.randn(16, width // 2), torch.randn(16, 7)

def loss(theta, phi, batch):
    hidden = torch.nn.functional.dropout(torch.tanh(x @ theta["a"] + theta["b"]), 0.1, training=draws)
    return (hidden @ theta["c"] + theta["d"] - y).square().mean()

problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())

def call():
    more = {"steps": steps, "phi_opt": {"lr": torch.tensor(1e-2)}, "memory": gimli.memory.Budget(budget)}
    if kind == "tasks":
        more["tasks"] = 4
    if kind == "unroll":
        learned = {k: v.requires_grad_() for k, v in theta.items()}
        gimli.unroll(problem, learned, batch, None, **more).backward()
    else:
        for _ in range(2 if kind == "twice" else 1):
            gimli.meta_gradient(problem, theta, batch, None, **more)
"""

pytestmark = pytest.mark.skipif(not separates(), reason="a budget is held on glibc alone")


def occupied(budget: str, steps: int, kind: str = "plain", width: int = 20) -> tuple[int, str]:
    """The most bytes that the call takes in a process of its own, and a refusal."""
    return cold(PROGRAM, budget, steps, kind, width)


@lru_cache
def libraries() -> int:
    """Bytes of the libraries that such a call is the first to load, as the refusal of a small budget has them: 16 MiB
    with torch's build for processors, up to 30 with the one for CUDA, which a processor may run too."""
    _, refused = occupied("1MB", 300)
    told = re.search(r"([\d.]+) MiB of each are libraries", refused)
    assert told
    return round(float(told[1]) * 2**20)


def test_a_budget_counts_the_nodes_of_graphs_and_pythons_objects() -> None:
    """All 300 graphs take 14 MB, of which their tensors are 4."""
    bound = libraries() + 7_000_000
    most, refused = occupied(f"{bound}B", 300)
    assert refused == ""
    assert 0 < most <= bound


def test_a_budget_has_no_room_for_copies_of_the_data_that_batches_come_from() -> None:
    """Several copies would be alive before the first step, of 5 MiB each."""
    bound = libraries() + 7_000_000
    most, refused = occupied(f"{bound}B", 300, "keeps")
    assert refused == ""
    assert 0 < most <= bound


def test_too_little_for_any_process_is_refused_and_the_least_will_do() -> None:
    def loss(theta: dict[str, Tensor], phi: object, batch: float) -> Tensor:
        return theta["w"].square().sum() * batch

    problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())
    arguments = (problem, {"w": torch.ones(3)}, [1.0] * 6, 1.0)
    with pytest.raises(gimli.errors.ArgumentError, match=r"at least [\d.]+ MiB for 6 steps") as caught:
        gimli.meta_gradient(*arguments, memory=gimli.memory.Budget("1MB"))
    least = str(caught.value).split("at least ")[1].split(" for ")[0]
    expected = gimli.meta_gradient(*arguments).B_0["w"]
    assert torch.equal(gimli.meta_gradient(*arguments, memory=gimli.memory.Budget(least)).B_0["w"], expected)


@pytest.mark.long
@pytest.mark.parametrize(
    ("megabytes", "kind"),
    [
        (8, "plain"),
        (43, "plain"),
        (133, "twice"),
        (43, "draws"),
        (43, "unroll"),
        (73, "tasks"),
    ],
)
def test_two_thousand_steps(megabytes: int, kind: str) -> None:
    bound = libraries() + megabytes * 10**6
    most, refused = occupied(f"{bound}B", 2000, kind)
    assert refused == ""
    assert 0 < most <= bound


@pytest.mark.long
@pytest.mark.parametrize("kind", ["plain", "unroll", "tasks", "draws"])
@pytest.mark.parametrize("least", [70, 120, 300])
def test_a_network_of_130_000_numbers(least: int, kind: str) -> None:
    megabytes = max(least, 130) if kind == "tasks" else least  # four tasks need 116 MB
    most, refused = occupied(f"{megabytes}MB", 60, kind, width=500)
    assert refused == ""
    assert 0 < most <= megabytes * 10**6
