"""The recipes run, and the loops of others around `unroll` learn what a plain `for` learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def printed(name: str, *options: str, warnings: str = "error", run: tuple[str, ...] = ()) -> list[str]:
    """The lines that a recipe prints."""
    command = [sys.executable, "-W", warnings, *run, name, "--outer-steps", "3", *options]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_plain_for() -> None:
    assert printed("recipe_for_loop.py")[-1].startswith("on 100 new waves ")


def test_the_outer_loop_leaves_its_files(tmp_path: Path) -> None:
    lines = printed("recipe_outer_loop.py", "--out", str(tmp_path / "run"))
    assert lines[-1].startswith("outer step    3: on 100 new waves ")
    assert {"checkpoint", "log.jsonl"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.long
def test_lightning_learns_what_a_plain_for_learns() -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed")
    lines = printed("recipe_lightning.py", warnings="default")  # its own imports warn
    assert lines[-1] == printed("recipe_for_loop.py")[-1]


@pytest.mark.long
def test_accelerate_learns_what_a_plain_for_learns() -> None:
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    assert printed("recipe_accelerate.py", warnings="default")[-1] == printed("recipe_for_loop.py")[-1]


@pytest.mark.long
def test_accelerate_averages_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes have other tasks each: the first loss is their mean, printed once."""
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
    lines = printed("recipe_accelerate.py", warnings="default", run=torchrun)
    assert len(lines) == 2
    monkeypatch.syspath_prepend(EXAMPLES)
    import sines

    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float32)  # the fixture puts it back
        network = sines.network()
        of = sines.problem(network)
        losses = [sines.loss_after_adaptation(network, of, sines.train_tasks(step)).item() for step in (0, 1)]
    assert lines[0] == f"outer step    0: loss after adaptation {sum(losses) / 2:.3f}"
