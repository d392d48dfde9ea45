"""`gimli step`: walk through a problem in the terminal, forwards and backwards."""

from __future__ import annotations

import argparse
import os
import sys

from gimli_core.commands.source import SCHEDULES, arguments_of, find, users_code
from gimli_core.step_through.lessons import LESSONS, Lesson
from gimli_core.step_through.terminal.help_text import HELP
from gimli_core.step_through.terminal.session import Session, typed
from gimli_core.step_through.terminal.stepper import Stepper
from gimli_core.step_through.terminal.view import Style
from gimli_core.step_through.walk import step_through

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{HELP}"
    parser.add_argument(
        "source", metavar="LESSON|MODULE:FUNCTION", help=f"a lesson ({', '.join(LESSONS)}) or your own problem"
    )
    parser.add_argument(
        "--memory", choices=list(SCHEDULES), help="the memory schedule to step through (the source's own)"
    )
    parser.add_argument(
        "--watch", action="append", default=[], metavar="EXPR", help="show this at every moment; may be repeated (none)"
    )
    parser.add_argument(
        "--break",
        action="append",
        default=[],
        dest="breaks",
        metavar="WHERE",
        help="stop there, at 'line 14', 'step 3', 'norm(B) > 1e3'; may be repeated (nowhere)",
    )
    parser.add_argument(
        "--follow",
        action="append",
        default=[],
        metavar="NAME[I]",
        help="follow a scalar parameter; may be repeated (none)",
    )
    parser.add_argument("--no-colour", action="store_true", help="no escape sequences; so too where NO_COLOR is set")


def run(arguments: argparse.Namespace) -> int:
    """Read commands until the input ends. Where output is not a terminal and none come, list the whole run."""
    source = find(arguments.source)
    asked = arguments_of(source, arguments.memory)
    with users_code(f"source {arguments.source!r}"):
        walk = step_through(**asked)
    stepper = Stepper(walk, tuple(arguments.watch), tuple(arguments.breaks))
    style = Style(_colour(arguments.no_colour), _unicode())
    session = Session(stepper, style, source if isinstance(source, Lesson) else None)
    for text in arguments.follow:
        session.follow(text)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    script = [] if sys.stdin.isatty() else [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not interactive and not script:
        return session.list_all()
    moved = stepper.next()
    session.introduce()
    print("help lists the commands; an empty line is next.") if interactive else None
    if moved:
        session.show()
    else:
        session.complain()
    for command in typed(style) if interactive else script:
        if not session.obey(command.strip()):
            break
    walk.close()
    return 0 if stepper.error is None else 2


def _colour(refused: bool) -> bool:
    return sys.stdout.isatty() and not refused and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()
