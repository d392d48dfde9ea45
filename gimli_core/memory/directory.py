"""A directory that the user names, as a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gimli_core.errors import ArgumentError, explain

__all__ = ["directory_of"]


def directory_of(argument: str, value: Any) -> Path:
    """`value` as a path, if it can be one. Nothing is made or looked up. Raises ArgumentError."""
    named = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    try:
        fits = isinstance(named, str) and "\0" not in named and bool(os.fsencode(named) or True)
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ArgumentError(
            explain(argument, "the path of a directory, a string or a Path", repr(value), "Name a directory.")
        )
    return Path(named)
