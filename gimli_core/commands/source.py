"""What to walk through, by name: a bundled lesson, or a user's own problem as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from gimli_core.errors import ArgumentError, closest, explain, listing
from gimli_core.memory import RetainGraphs, Schedule, StoreStates
from gimli_core.step_through.lessons import LESSONS, Lesson
from gimli_core.step_through.walk import step_through

__all__ = ["SCHEDULES", "arguments_of", "find"]

SCHEDULES: dict[str, type[Schedule]] = {"retain": RetainGraphs, "store": StoreStates}


def find(name: str) -> Lesson | dict[str, Any]:
    """A lesson, or the arguments of `step_through` that a user's function returns."""
    if ":" in name:
        return _own(name)
    if name not in LESSONS:
        raise ArgumentError(
            explain(
                f"source {name!r}",
                f"a lesson ({', '.join(LESSONS)}) or MODULE:FUNCTION",
                "neither",
                f"A function returns the arguments of gimli.step_through.{closest(name, LESSONS)}",
            )
        )
    return LESSONS[name]()


def arguments_of(found: Lesson | dict[str, Any], memory: str | None) -> dict[str, Any]:
    """The arguments of `step_through`, under the schedule of that name."""
    arguments = dict(found.arguments if isinstance(found, Lesson) else found)
    if memory is not None:
        arguments["memory"] = SCHEDULES[memory]()
    return arguments


def _own(target: str) -> dict[str, Any]:
    module_name, _, function_name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(
            explain(
                f"source {target!r}", "MODULE:FUNCTION that can be imported from here", str(error), "Check both names."
            )
        ) from error
    finally:
        sys.path.pop(0)
    came = function()
    if isinstance(came, Lesson):
        came = came.arguments
    if isinstance(came, tuple) and len(came) == 2 and isinstance(came[1], Mapping):
        came = {"problem": came[0], **came[1]}
    takes = inspect.signature(step_through)
    try:
        if not isinstance(came, Mapping):
            raise TypeError(f"a {type(came).__name__}")
        takes.bind(**came)
    except TypeError as error:
        expected = f"to return a dict of gimli.step_through's arguments ({listing(takes.parameters, 20)})"
        raise ArgumentError(
            explain(f"source {target!r}", expected, str(error), "Or return (problem, dict of the rest).")
        ) from error
    return dict(came)
