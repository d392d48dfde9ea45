"""The README's example runs as printed, and its commands are the ones that are checked."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gimli_core as gimli
from tests.pages import ROOT, blocks, links, run_as_printed

README = ROOT / "README.md"


def test_the_example_runs_as_printed() -> None:
    assert len(blocks(README, "python")) == 1
    torch.set_default_dtype(torch.float32)
    run_as_printed(README)


def test_there_are_two_commands_and_ci_runs_the_second() -> None:
    demo, test = (command.strip() for command in blocks(README, "sh"))
    assert demo.endswith("gimli demo")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"\n( {test} )\n" in script


def test_links_lead_to_something() -> None:
    assert links(README)
    assert [target for target in links(README) if not (ROOT / target).exists()] == []


def test_constraints_pin_every_requirement() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    names = {re.split(r"[<>=\[]", line)[0].lower() for text in listed for line in text.split()} - {"gimli_core"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in pins if "==" in line and not line.startswith("#")}
    assert names
    assert names - pinned == set()


def test_the_core_imports_with_torch_and_numpy_alone() -> None:
    # What an extra brings must not be needed by `import gimli_core` or by the command's own help.
    block = "import sys; sys.modules.update(dict.fromkeys(['scipy', 'sklearn', 'matplotlib', 'rich', 'sympy']))"
    code = f"{block}; import gimli_core; from gimli_core.commands.command_line import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: gimli" in done.stdout


# Every command that the README names in passing, with what makes it quick.
QUICK = {
    "gimli step momentum": [],
    "gimli trace momentum --out page.html": [],
    "gimli verify": ["--case", "ridge"],
    "gimli plan": ["--sizes", "8,8,2", "--steps", "4", "--batch", "4"],
    "gimli few-shot maml": ["--steps", "1", "--tasks", "1", "--episodes", "2", "--filters", "4"],
    "gimli attribute": ["--examples", "60", "--steps", "5", "--subsets", "2"],
}


def test_every_command_named_in_passing_is_tried() -> None:
    text = re.sub(r"^```.*?^```$", "", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(gimli [^`]*)`", text)) == set(QUICK)


@pytest.mark.long
@pytest.mark.parametrize("command", QUICK)
def test_a_command_named_in_passing_runs(command: str, tmp_path: Path) -> None:
    start = "import sys; from gimli_core.commands.command_line import main; sys.exit(main(sys.argv[1:]))"
    whole = [sys.executable, "-c", start, *command.split()[1:], *QUICK[command]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        whole, input="quit\n", capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_wheel_works_in_an_empty_environment() -> None:
    script = ["sh", str(ROOT / "tests" / "release.sh"), sys.executable]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gimli demo, trace and verify run from the wheel" in done.stdout


def test_the_version_stands_in_one_place() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {gimli.__version__}\n" in citation
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["metadata"]["version"] == "attr: gimli_core.__version__"
