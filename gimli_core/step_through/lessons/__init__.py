"""Five walks through Algorithm 1, each with a problem, a page and a verification.

lesson = gimli.lessons.momentum()
lesson                      # in a notebook: the page
lesson.save("page.html")
print(lesson.verification)  # the engine beside a closed form or finite differences
"""

from gimli_core.step_through.lessons.adam import adam
from gimli_core.step_through.lessons.exploding import exploding
from gimli_core.step_through.lessons.lesson import Lesson
from gimli_core.step_through.lessons.maml import maml
from gimli_core.step_through.lessons.momentum import momentum
from gimli_core.step_through.lessons.quadratic import quadratic

__all__ = ["LESSONS", "Lesson", "adam", "exploding", "maml", "momentum", "quadratic"]

LESSONS = {"quadratic": quadratic, "momentum": momentum, "adam": adam, "maml": maml, "exploding": exploding}
