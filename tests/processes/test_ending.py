"""What is left of a process group after a program's last line: a thread of gloo's may abort a process that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

THREADS = Path("/proc/self/task")

PROGRAM = """
import torch
from torch import distributed
import gimli_core as gimli
from tests.processes.test_ending import gloo_threads

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
theta_0 = {"w": torch.ones(3, requires_grad=True)}
loss = lambda theta, phi, batch: ((theta["w"] - batch) ** 2).sum()
problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
batch = torch.zeros(2, 3)
query = gimli.unroll(problem, theta_0, [batch], batch, steps=1, tasks=2, mesh="tasks")
query.backward()
torch.optim.Adam(theta_0.values()).step()  # imports what keeps a group that is there
assert gloo_threads()
distributed.destroy_process_group()
assert not gloo_threads(), gloo_threads()
"""


def gloo_threads() -> list[str]:
    names = [(thread / "comm").read_text(encoding="utf-8").strip() for thread in THREADS.iterdir()]
    return [name for name in names if "gloo" in name]


@pytest.mark.skipif(not THREADS.exists(), reason="threads are listed by Linux alone")
def test_no_thread_of_gloo_outlives_its_group() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
