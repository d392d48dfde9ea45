"""The README's example runs as printed, and its commands are the ones that are checked."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys

import torch

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
