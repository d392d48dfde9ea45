"""A budget holds for a network of 370 numbers in a cold process, of which graphs are more than all tensors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.memory.allocator import separates

PROGRAM = """
import json, sys, threading, torch
import gimli_core as gimli
from gimli_core.memory.allocator import resident, warm

budget, steps, draws = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "draws"
torch.set_num_threads(1)
torch.manual_seed(0)
theta = {k: torch.randn(*shape) / 3 for k, shape in {"a": (10, 20), "b": (20,), "c": (20, 7), "d": (7,)}.items()}
x, y = torch.randn(16, 10), torch.randn(16, 7)

def loss(theta, phi, batch):
    hidden = torch.nn.functional.dropout(torch.tanh(x @ theta["a"] + theta["b"]), 0.1, training=draws)
    return (hidden @ theta["c"] + theta["d"] - y).square().mean()

problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())
warm()  # what torch imports once is not counted, and the documents say so
base, most, done = resident(), 0, threading.Event()

def look():
    global most
    while not done.wait(2e-4):
        most = max(most, resident() - base)

watch = threading.Thread(target=look)
watch.start()
refused = ""
try:
    gimli.meta_gradient(problem, theta, lambda j: None, None, steps=steps, phi_opt={"lr": torch.tensor(1e-2)},
                        memory=gimli.memory.Budget(budget))
except gimli.errors.ArgumentError as error:
    refused = str(error)
done.set()
watch.join()
print(json.dumps([most, refused]))
"""

pytestmark = pytest.mark.skipif(not separates(), reason="a budget is held on glibc alone")


def cold(budget: str, steps: int, kind: str = "plain") -> tuple[int, str]:
    """The most bytes that a process of its own occupied above its imports, and the refusal if there was one."""
    line = [sys.executable, "-c", PROGRAM, budget, str(steps), kind]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    most, refused = json.loads(done.stdout)
    return most, refused


def test_a_budget_counts_the_nodes_of_graphs_and_pythons_objects() -> None:
    """All 150 graphs take 7 MB, of which their tensors are 2: with 5 MB they are not all kept."""
    most, refused = cold("5MB", 150)
    assert refused == ""
    assert 0 < most <= 5_000_000


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
    ("budget", "kind"),
    [("5MB", "plain"), ("20MB", "plain"), ("60MB", "plain"), ("150MB", "plain"), ("10MB", "draws"), ("50MB", "draws")],
)
def test_two_thousand_steps(budget: str, kind: str) -> None:
    most, refused = cold(budget, 2000, kind)
    assert refused == ""
    assert 0 < most <= int(budget[:-2]) * 10**6
