"""The one way in which the library tells its user something in passing: a line through `logging`.

The logger is `gimli_core`, the level WARNING, so that without any set-up a line appears on standard error;
`logging.getLogger("gimli_core").setLevel("ERROR")` silences it.
"""

from __future__ import annotations

import logging

__all__ = ["notice"]


def notice(text: str) -> None:
    """Tell the user one line."""
    logging.getLogger("gimli_core").warning("gimli_core: %s", text)
