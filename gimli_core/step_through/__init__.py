"""Watch Algorithm 1 at work: events in Python, a terminal view, a page, lessons and figures."""

from gimli_core.step_through import lessons
from gimli_core.step_through.page import figures
from gimli_core.step_through.page.trace import Trace, trace
from gimli_core.step_through.walk import Intervention, Moment, Walk, step_through

__all__ = ["Intervention", "Moment", "Trace", "Walk", "figures", "lessons", "step_through", "trace"]
