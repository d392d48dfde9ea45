"""`gimli` turns what happens into exit codes, with one clear line for the user."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import gimli_core
from gimli_core.commands import command_line
from gimli_core.errors import ArgumentError
from gimli_core.few_shot.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-c", "import sys; from gimli_core.commands.command_line import main; sys.exit(main())"]


def pretend(monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
    """Put a command `pretended` into the table that returns, or raises, `outcome`."""

    def run(arguments: argparse.Namespace) -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    module = SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--size", type=int), run=run)
    monkeypatch.setitem(sys.modules, "pretended_module", module)  # type: ignore[misc]
    monkeypatch.setitem(
        command_line.COMMANDS, "pretended", command_line._Command("pretended_module", "bench", "not a real one")
    )


@pytest.mark.parametrize("code", [0, 1])
def test_a_commands_exit_code_is_the_programs(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    pretend(monkeypatch, code)
    assert command_line.main(["pretended", "--size", "3"]) == code


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (ArgumentError("steps: expected more;\n got less."), 2, "gimli: steps: expected more; got less.\n"),
        (KeyboardInterrupt(), 130, "gimli: interrupted\n"),
        (
            ModuleNotFoundError("No module named 'higher'", name="higher"),
            2,
            "gimli: the package 'higher' is missing. Install it with pip install 'gimli_core[bench]'.\n",
        ),
    ],
)
def test_failures_are_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcome: BaseException, code: int, line: str
) -> None:
    pretend(monkeypatch, outcome)
    assert command_line.main(["pretended"]) == code
    printed = capsys.readouterr()
    assert printed.err == line
    assert printed.out == ""


@pytest.mark.parametrize(
    "fault", [ModuleNotFoundError("No module named 'gimli_core.nowhere'", name="gimli_core.nowhere"), KeyError("x")]
)
def test_a_fault_of_our_own_is_shown_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Exception
) -> None:
    """1 would say that a check disagreed."""
    pretend(monkeypatch, fault)
    assert command_line.main(["pretended"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert f"gimli: a fault of gimli_core's own: {type(fault).__name__}" in said.splitlines()[-1]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser with its options, by its name."""
    subcommands = next(
        action for action in command_line._parser([*command_line.COMMANDS])._actions if isinstance(action.choices, dict)
    )
    return dict(subcommands.choices)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_the_help_of_what_may_be_left_out_ends_with_its_default(name: str) -> None:
    """In brackets, or after "by default"; a switch is off until it is given."""
    parser = parsers()[name]
    optional = [action for action in parser._actions if not action.required and action.default != argparse.SUPPRESS]
    assert optional
    for action in optional:
        assert action.help, action.dest
        said = parser._get_formatter()._expand_help(action)
        if isinstance(action, argparse._StoreTrueAction):
            continue
        assert re.search(r"\([^()]+\)$|; by default [^()]+$", said), f"{action.dest}: {said}"
        if action.default not in (None, []):
            assert said.endswith(f"({action.default})")


@pytest.mark.parametrize("method", RECIPES)
def test_the_help_of_few_shot_has_every_methods_own_defaults(method: str) -> None:
    recipe, told = RECIPES[method], parsers()["few-shot"].epilog or ""
    (line,) = (line for line in told.splitlines() if line.startswith(f"{method} "))
    assert line.split()[1:] == [
        *(str(recipe.train_way or "--way"), str(recipe.train_shot or "--shot"), str(recipe.tasks)),
        *(f"{recipe.steps},", str(recipe.quick_steps), f"{recipe.rate:g}", *recipe.network.split()),
        *(f"{recipe.filters},", str(recipe.quick_filters)),
    ]


def test_a_command_describes_itself_with_its_capitals() -> None:
    assert parsers()["step"].description == "Walk through Algorithm 1 in the terminal."


@pytest.mark.parametrize("argv", [[], ["dance"], ["demo", "--seed", "many"], ["--jump"]])
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.main(argv)
    assert left.value.code == 2
    assert "usage: gimli" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in command_line.COMMANDS)])
def test_help_names_what_there_is(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.main(argv)
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (command_line.COMMANDS if argv == ["--help"] else argv[:1]))


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.main(["--version"])
    assert left.value.code == 0
    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    name, version = capsys.readouterr().out.split()
    assert name == "gimli_core"
    assert version == gimli_core.__version__
    assert "\nversion = attr: gimli_core.__version__\n" in config


def test_a_reader_that_leaves_early_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does once it has enough
    try:
        done = subprocess.run(
            [*PROGRAM, "verify"], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_bad_data_is_one_line_and_exit_2(tmp_path: Path) -> None:
    command = [*PROGRAM, "demo", "--data", str(tmp_path / "absent.csv")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "absent.csv: expected an .npz or CSV file; got no such file. Check the path." in done.stderr
