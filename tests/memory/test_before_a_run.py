"""What a call does before its run is within its budget in a cold process, or refused: large copies before any is made,
and what a budget must have is said.
"""

from __future__ import annotations

import pytest

from gimli_core.memory.allocator import separates
from tests.cold import cold

# The run itself takes little of its own: all batches are there before the call, or one is made for each step.
PROGRAM = """
import sys, torch
import gimli_core as gimli

size, kind, check = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "checked"
torch.set_num_threads(1)
batch = torch.full((1 << 14, 256), 0.5)  # 16 MiB
theta = {"w": torch.full((256,), 0.1)}

def loss(theta, phi, batch):
    return (batch @ theta["w"] - 1).square().mean()

problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.01, momentum=0.9))
batches = {"list": [batch] * 8, "made": lambda j: torch.full((1 << 14, 256), 0.5), "until": [batch] * 8}[kind]
val = batch[:4] if kind == "made" else batch

def call():
    more = {"until": gimli.Until(grad_norm=0, strict=False)} if kind == "until" else {}
    more |= {"steps": 8, "phi_opt": {"lr": torch.tensor(0.01)}, "memory": gimli.memory.Budget(size), "check": check}
    gimli.meta_gradient(problem, theta, batches, val, **more)
"""

BATCH = 16 * 2**20

pytestmark = pytest.mark.skipif(not separates(), reason="a budget is held on glibc alone")


def occupied(size: int, kind: str, check: str = "checked") -> tuple[int, str]:
    """The most bytes that the call takes in a process of its own, and a refusal."""
    return cold(PROGRAM, size, kind, check)


def test_less_than_the_copies_of_two_batches_is_refused_before_any_is_made() -> None:
    most, refused = occupied(2 * BATCH - 1, "list")
    assert "expected at least 32 MiB, and what a step takes, before the run" in refused
    assert "check=False tries nothing" in refused
    assert most < BATCH


def test_without_checks_the_same_budget_does() -> None:
    most, refused = occupied(2 * BATCH - 1, "list", "unchecked")
    assert refused == ""
    assert 0 < most <= 2 * BATCH - 1


@pytest.mark.parametrize("kind", ["list", "made", "until"])
def test_what_is_said_to_do_does_and_is_not_exceeded(kind: str) -> None:
    """Between the copies alone and all that is needed: the refusal tells how much that is."""
    most, refused = occupied(2 * BATCH + 2**20, kind)
    assert "are taken before the run" in refused
    least = round(float(refused.split("expected at least ")[1].split(" MiB")[0]) * 2**20)
    assert least < 5 * BATCH  # a copy that is freed leaves no hole behind: they were seven
    most, refused = occupied(least, kind)
    assert refused == ""
    assert 2 * BATCH < most <= least
