"""Functions whose globals are not those of their module.

`torch.compile` watches the globals that a function reads where its module has them. A script that `multiprocessing`
starts anew (by "spawn" or "forkserver"), or one that `runpy` or `exec` runs, has functions that look them up in another
dict: what is compiled would go on with the value that it met first. Modules, functions and classes are taken to stay
what they are.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from typing import Any

from gimli_core.attributes import functions_of
from gimli_core.errors import listing
from gimli_core.globals_named import globals_named

__all__ = ["not_watched"]


def not_watched(things: Iterable[Any]) -> str | None:
    """Why what these functions do cannot be compiled, if one of them reads globals that would not be watched."""
    for function in functions_of(things):
        names, module = function.__globals__, sys.modules.get(function.__globals__.get("__name__", ""))
        if module is None or vars(module) is names:
            continue
        read, _ = globals_named(function.__code__)
        values = [name for name in read if name in names and not _stays(names[name])]
        if values:
            return (
                f"{function.__qualname__} reads {listing(values)} from globals that are not its module's, "
                f"{module.__name__!r}, where the compiler looks; put it into a module that is imported"
            )
    return None


def _stays(value: Any) -> bool:
    return inspect.ismodule(value) or inspect.isroutine(value) or inspect.isclass(value)
