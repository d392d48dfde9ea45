"""Watch Algorithm 1 at work: events in Python, a terminal view, a page, lessons and figures."""

import importlib
from typing import Any

from gimli_core.step_through import lessons
from gimli_core.step_through.interventions import Intervention
from gimli_core.step_through.page.trace import Trace, trace
from gimli_core.step_through.walk import Moment, Walk, step_through

__all__ = ["Intervention", "Moment", "Trace", "Walk", "lessons", "step_through", "trace"]


def __getattr__(name: str) -> Any:
    """`figures`, when it is asked for: it alone needs matplotlib."""
    if name == "figures":
        return importlib.import_module("gimli_core.step_through.page.figures")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
