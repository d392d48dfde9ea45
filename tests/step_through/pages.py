"""What the tests of pages share: how they are opened, and when one has drawn itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gimli_core as gimli

__all__ = ["Open", "Pages", "lesson", "settled"]

Open = Callable[..., Any]  # a page's path, and options of its browser context, to the page
Pages = Callable[[str], Path]  # a lesson's name to its page


def settled(page: Any) -> None:
    """Wait until the panels below the stage, which draw themselves last, have done so."""
    page.locator("body[data-settled=yes]").wait_for()


@cache
def lesson(name: str) -> gimli.lessons.Lesson:
    """A lesson, whose runs are made once in a session."""
    made: gimli.lessons.Lesson = gimli.lessons.LESSONS[name]()
    return made
