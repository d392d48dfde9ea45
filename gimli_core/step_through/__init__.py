"""Watch Algorithm 1 at work: events in Python, a terminal view, a page, lessons and figures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gimli_core.step_through.interventions import Intervention
from gimli_core.step_through.walk import Moment, Walk, step_through

if TYPE_CHECKING:
    from gimli_core.step_through import lessons
    from gimli_core.step_through.page import figures
    from gimli_core.step_through.page.trace import Trace, trace

__all__ = ["Intervention", "Moment", "Trace", "Walk", "figures", "lessons", "step_through", "trace"]

# What is imported when it is first asked for, and from where; `figures` alone needs matplotlib.
_LATE = {"figures": "page", "lessons": "", "Trace": "page.trace", "trace": "page.trace"}


def __getattr__(name: str) -> Any:
    """A name of `_LATE`: a module, or what stands in one."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    of = ".".join(filter(None, (__name__, _LATE[name])))
    return import_module(f"{of}.{name}") if name in ("figures", "lessons") else getattr(import_module(of), name)
