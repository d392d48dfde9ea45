"""What a run may be stopped at: a line, a step, or a condition; what could never stop it is refused when it is set."""

from __future__ import annotations

from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import unexpected
from gimli_core.step_through.terminal.expressions import checked, quantities_in

__all__ = ["check_break"]

PLACES = ("line", "step")
STOPS = (5, 6, 8, 9, 11, 12, 13, 14, 16)  # the lines that compute something


def check_break(text: str, inputs: Inputs) -> None:
    """Raise ArgumentError unless `text` is "line 14", "step 3" or a condition, of this run's lines, steps and names."""
    kind, _, value = text.partition(" ")
    if kind in PLACES and value.strip():
        _check_place(kind, value.strip(), inputs.form.steps)
    elif not quantities_in(checked(text), inputs.values.theta_0):
        do = f"For a place say break step {text} or break line 14." if text.isdigit() else "norm(B) > 1e3 is one."
        raise unexpected(f"break {text!r}", "a condition on a quantity of the run", "one on none", do)


def _check_place(kind: str, value: str, J: int) -> None:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        do = f"For example: break {kind} 3."
        raise unexpected(f"break {kind} {value!r}", f"a number after {kind!r}", repr(value), do)
    if kind == "line" and int(value) not in STOPS:
        do = "The others compute nothing to stop at."
        raise unexpected("break line", f"one of {', '.join(map(str, STOPS))}", value, do)
    if kind == "step" and int(value) > J:
        raise unexpected("break step", f"a step from 0 to {J}", value, "This run has no other.")
