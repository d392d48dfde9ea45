"""A call in a cold process imports nothing: what torch would import at its first derivative and its first counted
operation is 70 MiB and two seconds.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from gimli_core.memory.allocator import separates

PROGRAM = """
import sys, torch
import gimli_core as gimli

loss = lambda theta, phi, batch: theta["w"].square().sum() * batch
problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())
theta = {"w": torch.ones(300)}
known = set(sys.modules)
"""
CALLS = """
rate = {"lr": torch.tensor(0.1)}
gimli.meta_gradient(problem, theta, [1.0] * 20, 1.0)
gimli.meta_gradient(problem, theta, [1.0] * 20, 1.0, phi_opt=rate, tasks=2)
gimli.meta_gradient(problem, theta, [1.0] * 20, 1.0, phi_opt=rate, memory=gimli.memory.StoreStates())
gimli.meta_gradient(problem, theta, [1.0] * 20, 1.0, phi_opt=rate, memory=gimli.memory.Budget("40MB"))
gimli.unroll(problem, {"w": torch.ones(300, requires_grad=True)}, [1.0] * 20, 1.0).backward()
print(sorted(name for name in set(sys.modules) - known if name.partition(".")[0] != "gimli_core"))
"""


def cold(calls: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM + calls], capture_output=True, text=True, check=False)


def test_calls_in_a_cold_process_import_nothing() -> None:
    done = cold(CALLS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.long
@pytest.mark.skipif(not separates(), reason="a budget is held on glibc alone")
def test_what_a_call_loads_is_counted_and_named() -> None:
    """A module that the loss imports takes its bytes from the budget, and the refusal says so."""
    done = cold("""
def importing(theta, phi, batch):
    import torch._dynamo
    return theta["w"].square().sum()

problem = gimli.Problem(importing, importing, gimli.optimizers.SGD(lr=0.1))
gimli.meta_gradient(problem, theta, [1.0] * 20, 1.0, memory=gimli.memory.Budget("20MB"))
""")
    assert "ArgumentError" in done.stderr
    assert "of each are libraries that this call was the first to load" in done.stderr
