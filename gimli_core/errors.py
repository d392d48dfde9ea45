"""Every kind of failure, and how its message is put together.

A message's first line is enough to mend the call: which argument, what was
expected, what came, and what to do. All failures derive from `GimliError`
and from the built-in exception that a caller would reach for.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable
from typing import Any

__all__ = [
    "ArgumentError",
    "ClosedError",
    "GimliError",
    "NegativeCurvatureError",
    "NotConvergedError",
    "NotFiniteError",
    "NotReachedError",
    "ProcessError",
    "ReplayError",
    "RequirementError",
    "SecondDerivativeError",
    "StorageError",
    "VerificationError",
]

_VOWEL = re.compile(r"_*(?:[aeio]|u(?!ni|se|ui|int))", re.IGNORECASE)


class GimliError(Exception):
    """Base of every error that gimli_core raises on purpose."""


class ArgumentError(GimliError, ValueError):
    """An argument has the wrong type, shape, dtype, device, name or length."""


class ClosedError(GimliError, RuntimeError):
    """Something was used after what it belongs to had been closed and released."""


class RequirementError(GimliError, ValueError):
    """The problem fails one of the paper's requirements I, II, IIIa, IIIb."""


class NotFiniteError(GimliError, ArithmeticError):
    """A loss, a gradient or an update became infinite or not a number."""


class NotReachedError(GimliError, RuntimeError):
    """What was to end an inner loop did not come about in the steps that it was given."""


class NotConvergedError(GimliError, ArithmeticError):
    """A solve, or the inner loop that it stands on, stopped before it had converged."""


class NegativeCurvatureError(GimliError, ArithmeticError):
    """A Hessian that should be positive definite is not.

    `direction` is a unit vector u by the names of theta, `curvature` is u·Hu, and `damping` cures it: with that much of
    the identity added, the Hessian is positive definite as far as was seen.
    """

    def __init__(self, message: str, direction: dict[str, Any], curvature: float, damping: float) -> None:
        super().__init__(message)
        self.direction, self.curvature, self.damping = direction, curvature, damping


class ProcessError(GimliError, RuntimeError):
    """Another process of a mesh failed, or did not answer."""


class ReplayError(GimliError, RuntimeError):
    """A loss returned something else when a step was replayed."""


class SecondDerivativeError(GimliError, RuntimeError):
    """A second derivative was asked for through a finished backward sweep."""


class StorageError(GimliError, OSError):
    """A file of the disk tier or of a resumable run could not be written, or is not as it was written."""


class VerificationError(GimliError, AssertionError):
    """A meta-gradient disagrees with an oracle."""


def explain(argument: str, expected: str, actual: str, do: str) -> str:
    """One sentence that says what to mend: argument, expectation, what is there, remedy."""
    return f"{argument}: expected {expected}; got {actual}. {do}"


def unexpected(argument: str, expected: str, actual: str, do: str) -> ArgumentError:
    """The error to raise for an argument that is not as expected; arguments as in `explain`."""
    return ArgumentError(explain(argument, expected, actual, do))


def kind_of(value: object) -> str:
    """What a value is, with the article that it is spoken with.

    >>> kind_of(3), kind_of({}), kind_of(None)
    ('an int', 'a dict', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if _VOWEL.match(name) else 'a'} {name}"


def check_switch(argument: str, value: object) -> None:
    """Raise ArgumentError unless `value` is True or False: any other text would mean yes."""
    if not isinstance(value, bool):
        raise unexpected(argument, "True or False", repr(value), "A switch takes one of the two.")


def closest(name: object, candidates: Iterable[str]) -> str:
    """` Did you mean 'x'?` for a near miss, else the empty string."""
    match = difflib.get_close_matches(str(name), list(candidates), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def listing(names: Iterable[object], limit: int = 6) -> str:
    """The first few names, quoted, and how many more there are."""
    every = [repr(name) for name in names]
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more if every else "none"


def first_line(error: Exception) -> str:
    """What an error says, in one line: all of it of this package's own, whose remedy comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = lines[0] if isinstance(error, GimliError) else shortened(lines[0])
    return f"{type(error).__name__}: {said}"


def shortened(text: str, most: int = 160) -> str:
    """`text`, or its first words: about as many characters, and "…" for the rest.

    >>> shortened("the connection was closed by its peer", most=20)
    'the connection was …'
    """
    if len(text) <= most:
        return text
    end = text.rfind(" ", 0, most + 1)
    end = text.find(" ", most) if end < 0 else end  # a first word that is longer, a path say, stays whole
    return text if end < 0 else f"{text[:end].rstrip()} …"


def printable(text: object) -> str:
    """`text` without the characters that could steer a terminal or that none can encode; its lines stay apart.

    Names, paths and messages come from elsewhere. Whatever this package prints of them passes through here.

    >>> printable("\\x1b[2Jname")
    '�[2Jname'
    """
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in str(text))


def notice(text: str) -> None:
    """Tell the user one line in passing, through `logging`: the logger is `gimli_core`, the level WARNING.

    So without any set-up it appears on standard error; `logging.getLogger("gimli_core").setLevel("ERROR")` silences it.
    """
    logging.getLogger("gimli_core").warning("gimli_core: %s", text)
