"""What torch imports at its first derivative is there before a budget's base is taken."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gimli_core.memory.allocator import separates

PROGRAM = """
import sys, torch
import gimli_core as gimli
import gimli_core.memory.settle as settle

plain = settle.keeper
known = set()

def noted():
    known.update(sys.modules)
    return plain()

settle.keeper = noted
loss = lambda theta, phi, batch: theta["w"].square().sum() * batch
problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())
gimli.meta_gradient(problem, {"w": torch.ones(300)}, [1.0] * 20, 1.0, memory=gimli.memory.Budget("8MB"))
late = sorted(name for name in set(sys.modules) - known if name.partition(".")[0] != "gimli_core")
print(len(known), late)
"""


@pytest.mark.skipif(not separates(), reason="a budget is held on glibc alone")
def test_a_cold_process_imports_before_its_base_is_taken() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, late = done.stdout.strip().split(" ", 1)
    assert int(count) > 0
    assert late == "[]"
