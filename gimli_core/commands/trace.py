"""`gimli trace`: a whole run as one self-contained page."""

from __future__ import annotations

import argparse
import sys
import webbrowser

from gimli_core.commands.source import SCHEDULES, arguments_of, find, users_code
from gimli_core.errors import printable
from gimli_core.memory.whole_file import check_writable
from gimli_core.step_through.lessons import LESSONS, Lesson
from gimli_core.step_through.page.trace import trace
from gimli_core.step_through.walk import step_through

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="LESSON|MODULE:FUNCTION", help=f"a lesson ({', '.join(LESSONS)}) or your own problem"
    )
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="the file to write")
    parser.add_argument("--title", help="the page's heading")
    parser.add_argument("--memory", choices=list(SCHEDULES), help="the memory schedule to show")
    parser.add_argument(
        "--follow", action="append", default=[], metavar="NAME[I]", help="an entry of a large tensor to follow"
    )
    parser.add_argument("--figures", metavar="DIRECTORY", help="write figures there too (needs matplotlib)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the page. A problem that fails on its way gives a page up to there, and the exit code 2."""
    check_writable("--out", arguments.out)
    found = find(arguments.source)
    if isinstance(found, Lesson) and not (arguments.memory or arguments.follow or arguments.title):
        made = found.page()
    else:
        title = arguments.title or (found.title if isinstance(found, Lesson) else arguments.source)
        with users_code(f"source {arguments.source!r}"):
            made = trace(step_through(**arguments_of(found, arguments.memory)), title=title, follow=arguments.follow)
    path = made.save(arguments.out)
    print(f"{printable(path)}: {len(made.data['events']['line'])} moments, {path.stat().st_size / 1e6:.2f} MB")
    if arguments.figures:
        from gimli_core.step_through.page.figures import save_all

        for written in save_all(made, arguments.figures):
            print(printable(written))
    if arguments.open and not webbrowser.open(path.absolute().as_uri()):
        print(f"gimli: no browser could be started. Open {printable(path)} in one yourself.", file=sys.stderr)
    if made.error is not None:
        came = made.data["error"]
        print(
            printable(f"gimli: the run ended {came['after']}: {came['kind']}: {came['message']} ".replace("\n", " "))
            + "The page shows all up to there.",
            file=sys.stderr,
        )
        return 2
    return 0
