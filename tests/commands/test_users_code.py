"""Whatever a user's code does, a command ends with one line, and never with 0 where its work was not done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gimli_core.commands import command_line, verify
from gimli_core.commands.command_line import main
from gimli_core.verification.report import Report

PROBLEM = """
import sys
import torch
import gimli_core as gimli

def loss(theta, phi, batch):
    {in_loss}
    return ((theta["w"] - 1) ** 2).sum()

def build({parameters}):
    {in_function}
    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    theta_0 = {{"w": torch.zeros(2, dtype=torch.float64)}}
    return problem, dict(theta_0=theta_0, train_batches=[None, None], val_batch=None)

NOT_A_FUNCTION = 3
{at_import}
"""
COMMANDS = {
    "verify": ["verify"],
    "trace": ["trace", "--out", "page.html"],
    "step": ["step"],
    "plan": ["plan"],
}
# (changes to the module, target, a part of the line)
CASES = {
    "leaves at import": ({"at_import": "sys.exit(0)"}, "mine:build", "sys.exit(0) (mine.py, line 17)"),
    "raises at import": ({"at_import": "1 / 0"}, "mine:build", "division by zero (mine.py, line 17)"),
    "is no Python": ({"at_import": "def"}, "mine:build", "SyntaxError"),
    "imports what is not there": ({"at_import": "import nowhere"}, "mine:build", "No module named 'nowhere'"),
    "leaves in the function": ({"in_function": "sys.exit()"}, "mine:build", "sys.exit(None)"),
    "raises in the function": ({"in_function": "raise KeyError(7)"}, "mine:build", "KeyError: 7 (mine.py, line 11)"),
    "leaves in the loss": ({"in_loss": "sys.exit(0)"}, "mine:build", "sys.exit(0)"),
    "raises in the loss": ({"in_loss": "raise KeyError('x')"}, "mine:build", "KeyError"),
    "skips in the function": (
        {"in_function": "import pytest; pytest.skip('not here')"},
        "mine:build",
        "Skipped: not here (mine.py, line 11)",
    ),
    "stops a generator": ({"in_loss": "raise GeneratorExit"}, "mine:build", "GeneratorExit"),
    "misses a package in the loss": ({"in_loss": "import nowhere_at_all"}, "mine:build", "nowhere_at_all"),
    "needs an argument": ({"parameters": "x"}, "mine:build", "missing a required argument: 'x'"),
    "returns nothing": ({"in_function": "return"}, "mine:build", "got None"),
    "returns other keys": ({"in_function": "return {'a': 1}"}, "mine:build", "missing a required argument"),
    "returns keys that are no names": ({"in_function": "return {1: 1}"}, "mine:build", "expected to return a dict"),
    "is no function": ({}, "mine:NOT_A_FUNCTION", "3 is not a callable object"),
    "no such function": ({}, "mine:buidl", "Did you mean 'build'?"),
    "no such module": ({}, "nowhere_at_all:build", "No module named 'nowhere_at_all'"),
    "no such part": ({}, "mine.part:build", "'mine' is not a package"),
    "a relative name": ({}, ".mine:build", "got another form"),
    "a path": ({}, "../mine:build", "got another form"),
    "a file": ({}, "mine.py:build", "No module named 'mine.py'"),
    "no name": ({}, ":", "got another form"),
    "a NUL": ({}, "mi\0ne:build", "got another form"),
    "an escape sequence": ({}, "\x1b[2J:build", "got another form"),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    sys.modules.pop("mine", None)
    return tmp_path / "mine.py"


def written(module: Path, changes: dict[str, str]) -> None:
    parts = {"in_loss": "pass", "in_function": "pass", "parameters": "", "at_import": ""} | changes
    module.write_text(PROBLEM.format(**parts), encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_is_one_line_and_a_2(
    command: str, case: str, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, target, line = CASES[case]
    written(module, changes)
    name, *options = COMMANDS[command]
    assert main([name, target, *options]) == 2
    printed = capsys.readouterr()
    if command == "step" and case in ("raises in the loss", "misses a package in the loss") and not printed.err:
        printed = printed._replace(err=printed.out)  # the session ends where the run does
    assert line in printed.err
    assert "\x1b" not in printed.err
    assert "Traceback" not in printed.err
    assert printed.err.count("\n") == 1
    assert name != "verify" or not printed.out


@pytest.mark.parametrize("command", COMMANDS)
def test_what_runs_through_is_a_0(command: str, module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(module, {})
    name, *options = COMMANDS[command]
    assert main([name, "mine:build", *options]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("leaves", ["os._exit(0)", "threading.Thread(target=os._exit, args=(1,)).start()"])
def test_code_that_ends_the_process_is_one_line_and_a_2(leaves: str, module: Path) -> None:
    """Nothing can be caught there; the process is one of its own."""
    written(module, {"in_loss": f"import os, threading, time; {leaves}; time.sleep(60)"})
    program = "import sys; from gimli_core.commands.command_line import main; sys.exit(main(['verify', 'mine:build']))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=module.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "got os._exit(" in done.stderr


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 has other threads in mind
def test_a_fork_may_leave_as_it_likes(module: Path) -> None:
    written(module, {"at_import": "import os\nif os.fork() == 0:\n    os._exit(0)\nassert os.wait()[1] == 0"})
    leave = os._exit
    assert main(["verify", "mine:build"]) == 0
    assert os._exit is leave


def test_a_command_finds_modules_beside_it_while_it_runs(module: Path) -> None:
    """A loss may import, as under `python -m`."""
    (module.parent / "mines_neighbour.py").write_text("", encoding="utf-8")
    written(module, {"in_loss": "import mines_neighbour"})
    assert main(["verify", "mine:build"]) == 0


def test_nothing_checked_is_not_ok(
    module: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(module, {})
    monkeypatch.setattr(verify, "verify", lambda problem, **rest: Report(()))
    assert main(["verify", "mine:build"]) == 1
    assert "not verified: nothing was checked" in capsys.readouterr().out


def test_an_empty_name_is_no_wish_for_the_bundled_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", ""]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert "source '': expected MODULE:FUNCTION" in printed.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("shown", [[], ["--json"]])
def test_output_that_cannot_be_written_is_one_line_and_a_2(
    shown: list[str], module: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written(module, {})
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["verify", "mine:build", *shown]) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("gimli: the output could not be written: No space left on device.")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("way", ["trace", "step"])
def test_code_that_leaves_while_a_run_is_shown(way: str, module: Path) -> None:
    """At the second step. In a process of its own, since its exit code is what counts."""
    written(module, {"in_loss": "theta['w'].abs().sum() > 0 and sys.exit(0)"})
    program = "import sys; from gimli_core.commands.command_line import main; sys.exit(main())"
    path = os.pathsep.join([str(Path(command_line.__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, way, "mine:build", *COMMANDS[way][1:]],
        capture_output=True,
        text=True,
        cwd=module.parent,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 2
    assert "sys.exit(0)" in done.stderr


def test_a_problem_and_a_perceptrons_sizes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "mine:build", "--steps", "3", "--batch", "2"]) == 2
    assert "got '--steps', '--batch'" in capsys.readouterr().err


@pytest.mark.parametrize("shown", [[], ["--json"]])
def test_names_of_a_problem_cannot_steer_the_terminal(
    shown: list[str], module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(module, {})
    text = module.read_text(encoding="utf-8")
    module.write_text(text.replace('"w"', '"\\x1b[2J"'), encoding="utf-8")
    assert main(["verify", "mine:build", *shown]) == 0
    said = capsys.readouterr().out
    assert "[2J" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("claimed", ["torch.ones(2)", "3", "[]", "'lr'"])
def test_a_claim_that_is_no_dict(claimed: str, module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(module, {})
    text = module.read_text(encoding="utf-8")
    module.write_text(text.replace("val_batch=None)", f"val_batch=None, claimed={claimed})"), encoding="utf-8")
    assert main(["verify", "mine:build"]) == 2
    assert "claimed: expected a dict of derivatives" in capsys.readouterr().err
