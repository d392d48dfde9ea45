"""The recipes run, and the loops of others around `unroll` learn what a plain `for` learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def printed(name: str, *options: str, warnings: str = "error") -> list[str]:
    """The lines that a recipe prints."""
    command = [sys.executable, "-W", warnings, name, "--outer-steps", "3", *options]
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
