"""`gimli trace`: a whole run as one self-contained page."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from gimli_core.commands.source import SCHEDULES, arguments_of, find, users_code
from gimli_core.errors import printable, unexpected
from gimli_core.memory.atomic_file import check_writable
from gimli_core.step_through.lessons import LESSONS, Lesson, save_all
from gimli_core.step_through.page.trace import trace
from gimli_core.step_through.page.worst_steps import worst_steps
from gimli_core.step_through.walk import step_through

__all__ = ["add_arguments", "run"]

FEW = 40  # parameters, which the page's own map shows one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="LESSON|lessons|MODULE:FUNCTION",
        help=f"a lesson ({', '.join(LESSONS)}), all lessons with an index, or your own problem",
    )
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="the file to write; of lessons the directory")
    parser.add_argument("--title", help="the page's heading (the source's own name)")
    parser.add_argument("--memory", choices=list(SCHEDULES), help="the memory schedule to show (the source's own)")
    parser.add_argument(
        "--follow",
        action="append",
        default=[],
        metavar="NAME[I]",
        help="an entry of a large tensor to follow; may be repeated (none)",
    )
    parser.add_argument("--figures", metavar="DIRECTORY", help="write figures there too; needs matplotlib (no figures)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the page. A problem that fails on its way gives a page up to there, and the exit code 2."""
    if arguments.source == "lessons":
        return _all_lessons(arguments)
    check_writable("--out", arguments.out)
    source = find(arguments.source)
    if isinstance(source, Lesson) and not (arguments.memory or arguments.follow or arguments.title):
        made = source.page()
    else:
        title = arguments.title or (source.title if isinstance(source, Lesson) else arguments.source)
        with users_code(f"source {arguments.source!r}"):
            made = trace(step_through(**arguments_of(source, arguments.memory)), title=title, follow=arguments.follow)
    path = made.save(arguments.out)
    print(f"{printable(path)}: {len(made.data['events']['line'])} moments, {path.stat().st_size / 1e6:.2f} MB")
    if made.data["parameters"] > FEW:
        for step in worst_steps(made, 3):
            where = f" in {printable(step.tensor)}" if step.tensor else ""
            print(f"step {step.j}: |B| x{step.factor:.3g}, most by the {step.cause}, largest{where}: {step.address}")
    if arguments.figures:
        from gimli_core.step_through.page import figures

        for written in figures.save_all(made, arguments.figures):
            print(printable(written))
    _open(path) if arguments.open else None
    if made.error is not None:
        actual = made.data["error"]
        print(
            printable(
                f"gimli: the run ended {actual['after']}: {actual['kind']}: {actual['message']} ".replace("\n", " ")
            )
            + "The page shows all up to there.",
            file=sys.stderr,
        )
        return 2
    return 0


def _all_lessons(arguments: argparse.Namespace) -> int:
    """Every lesson's page and their index into a directory; what is said of one run has no place there."""
    asked = [f"--{name}" for name in ("title", "memory", "follow", "figures") if getattr(arguments, name)]
    if asked:
        raise unexpected("gimli trace lessons", "--out and --open alone", ", ".join(asked), "Trace one lesson with it.")
    index, *pages = save_all(arguments.out)
    for path in (*pages, index):
        print(f"{printable(path)}: {path.stat().st_size / 1e6:.2f} MB")
    _open(index) if arguments.open else None
    return 0


def _open(path: Path) -> None:
    if not webbrowser.open(path.absolute().as_uri()):
        print(f"gimli: no browser could be started. Open {printable(path)} in one yourself.", file=sys.stderr)
