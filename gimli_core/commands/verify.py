"""`gimli verify`: the bundled cases, or a user's own problem, against every oracle."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from gimli_core.commands.source import users_arguments, users_code
from gimli_core.errors import closest, printable, unexpected
from gimli_core.memory.atomic_file import check_writable, writing
from gimli_core.step_through.page.trace import trace
from gimli_core.step_through.walk import step_through
from gimli_core.verification.cases import CASES
from gimli_core.verification.localise import Finding
from gimli_core.verification.report import Report
from gimli_core.verification.verify import verify

__all__ = ["add_arguments", "run"]

FAMILIES = ("autograd", "finite differences", "dense chain", "closed form")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "exit code: 0 everything agrees, 1 something disagrees, 2 bad input\n\ncases:\n" + "\n".join(
        f"  {name:20} {case.about}" for name, case in CASES.items()
    )
    parser.add_argument(
        "problem",
        nargs="?",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns those of gimli.verify: a dict, or (problem, dict of the rest); "
        "by default the bundled cases",
    )
    parser.add_argument(
        "--case",
        action="append",
        metavar="NAME",
        help="only this bundled case, with its whole table; may be repeated (all)",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="PATH",
        help="write the reports as JSON to PATH, or to standard output (no JSON)",
    )
    parser.add_argument(
        "--page",
        metavar="PAGE.html",
        help="where the engine disagrees, write its run as a page, and print the address of its first wrong "
        "step (no page)",
    )


def run(arguments: argparse.Namespace) -> int:
    users_own = arguments.problem is not None  # "" too: a variable that is empty asks for no bundled case
    if users_own and arguments.case:
        raise unexpected("gimli verify", "MODULE:FUNCTION or --case", "both", "Leave one out.")
    if arguments.page:
        check_writable("--page", arguments.page)
    if arguments.json not in (None, "-"):
        check_writable("--json", arguments.json)
    names = [arguments.problem] if users_own else arguments.case or list(CASES)
    in_full, show = bool(users_own or arguments.case), arguments.json != "-"
    if show and not in_full:
        print(_row("case", ["entries", *FAMILIES], "verdict"))
    reports: dict[str, Report] = {}
    with torch.random.fork_rng():
        for name in names:
            torch.manual_seed(0)
            asked = users_arguments(name, verify, "gimli.verify") if users_own else _bundled(name)
            with users_code(f"source {name!r}"):
                reports[name] = report = verify(**asked)
            if show and not in_full:
                errors = [report.worst(family) for family in FAMILIES]
                cells = [str(report.entries), *("-" if e is None else f"{e:.0e}" for e in errors)]
                print(_row(name, cells, "ok" if report.ok else "WRONG"), flush=True)
            if show and (in_full or not report.ok):
                print(printable(name) if users_own else f"{name}: {CASES[name].about}")
                _print(report)
            if report.finding is not None and all(r.finding is None for n, r in reports.items() if n != name):
                _lead_to(report.finding, asked, name, arguments)
    ok = all(report.ok for report in reports.values())
    if show and not in_full:
        print("\nEach figure is the largest relative error against that oracle. In full: gimli verify --case NAME")
    if arguments.json:
        _write({"ok": ok, "cases": {name: report.to_dict() for name, report in reports.items()}}, arguments.json)
    return 0 if ok else 1


def _lead_to(finding: Finding, asked: dict[str, Any], name: str, arguments: argparse.Namespace) -> None:
    """The page of the run, with the address of the first wrong step; or how to come by it. Not among the JSON."""
    out = sys.stderr if arguments.json == "-" else sys.stdout
    if not arguments.page:
        source = printable(name) if arguments.problem else f"--case {name}"
        print(f"See the first wrong step: gimli verify {source} --page wrong.html", file=out)
        return
    walked = {key: asked[key] for key in inspect.signature(step_through).parameters if key in asked}
    with users_code(f"source {name!r}"):
        made = trace(step_through(**walked), title=f"{name}: first wrong is {finding}")
    place = f"#line={finding.line}" + ("" if finding.step is None else f"&j={finding.step}")
    print(f"The first wrong step: {printable(made.save(arguments.page).absolute().as_uri())}{place}", file=out)


def _bundled(name: str) -> dict[str, Any]:
    if name not in CASES:
        raise unexpected(
            "--case", f"one of {', '.join(CASES)}", repr(name), f"See gimli verify --help.{closest(name, CASES)}"
        )
    return CASES[name].build()


def _row(name: str, cells: Sequence[str], verdict: str) -> str:
    return (
        f"{name:18}  {cells[0]:>7}"
        + "".join(f"  {cell:>{len(f)}}" for cell, f in zip(cells[1:], FAMILIES, strict=True))
        + f"  {verdict}"
    )


def _print(report: Report) -> None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        print(report)
    else:
        Console(width=max(Console().width, report.width)).print(report)


def _write(report: dict[str, Any], path: str) -> None:
    text = json.dumps(report, indent=2, allow_nan=False)
    if path == "-":
        print(text)
        return
    with writing("--json", path) as file:
        file.write(f"{text}\n".encode())
