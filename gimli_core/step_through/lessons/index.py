"""All lessons as pages beside each other: links lead from one to the next, and an index to each."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from gimli_core.errors import unexpected
from gimli_core.memory.atomic_file import writing
from gimli_core.step_through.lessons.lesson import Lesson
from gimli_core.step_through.lessons.order import ORDER

__all__ = ["save_pages"]

INDEX = "index.html"


def save_pages(lessons: Mapping[str, Callable[[], Lesson]], directory: str | os.PathLike[str]) -> list[Path]:
    """Write every lesson's page and an index of them into a directory, which is made where it is missing.

    Each file is written whole or not at all, the index last.

    Args:
        lessons: makers of lessons by name.
        directory: where the pages are to stand.

    Returns:
        list of Path: the index, then the pages in their order.

    Raises:
        ArgumentError: a directory that cannot be written.

    Cost: the runs of all lessons and of their experiments, about half a minute.
    """
    try:
        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError, ValueError) as error:
        expected = "a directory that can be written"
        raise unexpected("directory", expected, f"{directory!r}: {error}", "Give another.") from None
    made = {name: lessons[name]() for name in ORDER if name in lessons}
    paths = []
    for name, lesson in made.items():
        page = lesson.page()
        paths.append(replace(page, notes={**page.notes, **_links(name, made)}).save(place / f"{name}.html"))
    with writing("path", place / INDEX) as file:
        file.write(index_page(made).encode())
    return [place / INDEX, *paths]


def _links(name: str, made: Mapping[str, Lesson]) -> dict[str, Any]:
    names = list(made)
    after = names[names.index(name) + 1 :][:1]
    following = {"name": after[0], "title": made[after[0]].title, "href": f"{after[0]}.html"} if after else None
    return {"index": INDEX, "next": following}


def index_page(made: Mapping[str, Lesson]) -> str:
    """The index: no script, nothing from the network."""
    rows = "\n".join(
        f'<li><h2><a href="{name}.html">{html.escape(lesson.title)}</a></h2><p>{html.escape(lesson.summary)}</p></li>'
        for name, lesson in made.items()
    )
    style = (files("gimli_core.step_through.page") / "assets" / "page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>Algorithm 1 in {len(made)} lessons</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body class="plain">\n<main class="card">\n<h1>Algorithm 1 in {len(made)} lessons</h1>\n'
        f"<p>Each is a run of the engine that can be stepped through, nudged and checked.</p>\n<ol>\n{rows}\n</ol>\n"
        "</main>\n</body>\n</html>\n"
    )
