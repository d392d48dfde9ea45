"""Ten walks through Algorithm 1, each with a problem, a page and a verification.

lesson = gimli.lessons.momentum()
lesson                      # in a notebook: the page
lesson.save("page.html")
print(lesson.verification)  # the engine beside a closed form or finite differences
gimli.lessons.save_all("lessons")   # every page, with links from one to the next, and an index
"""

import os
from pathlib import Path

from gimli_core.step_through.lessons.adam import adam
from gimli_core.step_through.lessons.checkpoints import checkpoints
from gimli_core.step_through.lessons.copied import copied
from gimli_core.step_through.lessons.example_weights import example_weights
from gimli_core.step_through.lessons.exploding import exploding
from gimli_core.step_through.lessons.implicit_rate import implicit_rate
from gimli_core.step_through.lessons.index import save_pages
from gimli_core.step_through.lessons.lesson import Lesson
from gimli_core.step_through.lessons.maml import maml
from gimli_core.step_through.lessons.momentum import momentum
from gimli_core.step_through.lessons.quadratic import quadratic
from gimli_core.step_through.lessons.tasks import tasks

__all__ = [
    "LESSONS",
    "Lesson",
    "adam",
    "checkpoints",
    "copied",
    "example_weights",
    "exploding",
    "implicit_rate",
    "maml",
    "momentum",
    "quadratic",
    "save_all",
    "tasks",
]

LESSONS = {
    "quadratic": quadratic,
    "momentum": momentum,
    "adam": adam,
    "maml": maml,
    "exploding": exploding,
    "example_weights": example_weights,
    "copied": copied,
    "implicit_rate": implicit_rate,
    "checkpoints": checkpoints,
    "tasks": tasks,
}


def save_all(directory: str | os.PathLike[str]) -> list[Path]:
    """Every lesson's page with links from one to the next, and an index of them: see `save_pages`."""
    return save_pages(LESSONS, directory)
