"""What a command works on: a bundled lesson by name, or a user's own problem as MODULE:FUNCTION.

The user's code is run here and, under `users_code`, wherever else it runs: whatever it does, leaving through
`sys.exit` included, a command ends with one line and never as if it had done its work.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gimli_core.errors import GimliError, closest, kind_of, listing, unexpected
from gimli_core.memory import RetainGraphs, Schedule, StoreStates
from gimli_core.step_through.lessons import LESSONS, Lesson
from gimli_core.step_through.walk import step_through

__all__ = ["SCHEDULES", "arguments_of", "find", "users_arguments", "users_code"]

SCHEDULES: dict[str, type[Schedule]] = {"retain": RetainGraphs, "store": StoreStates}
HERE = Path(__file__).parents[1]


def find(name: str) -> Lesson | dict[str, Any]:
    """A lesson, or the arguments of `step_through` that a user's function returns."""
    if name in LESSONS:
        return LESSONS[name]()
    if ":" in name:
        return users_arguments(name, step_through, "gimli.step_through")
    raise unexpected(
        f"source {name!r}",
        f"a lesson ({', '.join(LESSONS)}) or MODULE:FUNCTION",
        "neither",
        f"A function returns the arguments of gimli.step_through.{closest(name, LESSONS)}",
    )


def arguments_of(source: Lesson | dict[str, Any], memory: str | None) -> dict[str, Any]:
    """The arguments of `step_through`, under the schedule of that name."""
    arguments = dict(source.arguments if isinstance(source, Lesson) else source)
    if memory is not None:
        arguments["memory"] = SCHEDULES[memory]()
    return arguments


def users_arguments(target: str, takes: Callable[..., object], public: str) -> dict[str, Any]:
    """The arguments of `takes`, which users know as `public`, that MODULE:FUNCTION returns.

    The directory in which the command was given comes onto the path, as under `python -m`.

    Raises:
        ArgumentError: no such module or function; one that raises, leaves or needs arguments; one that returns
            something else.
    """
    module_name, _, function_name = target.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        do = "For example my_package.problem:build, given where my_package lies."
        raise unexpected(f"source {target!r}", "MODULE:FUNCTION, with a module's full name", "another form", do)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with users_code(f"source {target!r}"):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        expected = "MODULE:FUNCTION that can be imported from here"
        raise unexpected(f"source {target!r}", expected, str(error), "Check both names.") from error
    if not hasattr(module, function_name):
        do = f"Check the name.{closest(function_name, vars(module))}"
        raise unexpected(f"source {target!r}", f"a function of {module_name}", f"no {function_name!r} in it", do)
    function = getattr(module, function_name)
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        expected = "a function that can be called without arguments"
        raise unexpected(f"source {target!r}", expected, str(error), "Wrap it in one.") from None
    with users_code(f"source {target!r}"):
        actual: Any = function()
    if isinstance(actual, Lesson):
        actual = actual.arguments
    if isinstance(actual, tuple) and len(actual) == 2 and isinstance(actual[1], Mapping):
        actual = {"problem": actual[0], **actual[1]}
    signature = inspect.signature(takes)
    try:
        if not isinstance(actual, Mapping):
            raise TypeError(kind_of(actual))
        signature.bind(**actual)
    except TypeError as error:
        expected = f"to return a dict of {public}'s arguments ({listing(signature.parameters, 20)})"
        raise unexpected(f"source {target!r}", expected, str(error), "Or return (problem, dict of the rest).") from None
    return dict(actual)


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Around a call that runs a user's code: what it raises, and `sys.exit` in it, becomes one clear line.

    What is no `Exception` counts too, as pytest's `skip` is none. Errors that gimli_core raises on purpose, an
    interruption and a reader that has gone pass through; so does a package that is missing, be it one that gimli_core
    itself needs or the very module that was asked for.

    Raises:
        ArgumentError: the code raised, or left.
    """
    try:
        yield
    except (GimliError, BrokenPipeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        way_there = (__file__, importlib.__file__)
        users = [f for f in frames if not f.filename.startswith("<frozen") and f.filename not in way_there]
        if isinstance(error, ModuleNotFoundError) and (not users or _is_ours(users[-1].filename)):
            raise
        actual = (
            f"sys.exit({error.code!r})"
            if isinstance(error, SystemExit)
            else f"{type(error).__name__}: {error}".removesuffix(": ")
        )
        mine = [f for f in users if not _is_ours(f.filename) and not _is_installed(f.filename)]
        where = f" ({Path(mine[-1].filename).name}, line {mine[-1].lineno})" if mine else ""
        do = "Keep scripts under `if __name__ == '__main__':`." if isinstance(error, SystemExit) else "Mend it there."
        raise unexpected(what, "code that runs through", f"{actual}{where}", do) from error


def _is_ours(filename: str) -> bool:
    return HERE in Path(filename).parents


def _is_installed(filename: str) -> bool:
    return "site-packages" in filename
