"""What tests share of Markdown pages with code: their blocks, and one way to run a page as its reader would."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from pathlib import Path

__all__ = ["ROOT", "blocks", "links", "run_as_printed"]

ROOT = Path(__file__).resolve().parents[1]
BLOCK = r"^```{language}\n(.*?)^```$"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(BLOCK.format(language=language), text, re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """Where the page's links go to, other sites left out."""
    text = re.sub(r"^```.*?^```$|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def run_as_printed(page: Path) -> None:
    """Run all Python blocks of a page in order, as one program; it must print what its `# prints: …` lines say.

    Everything else on the page is blanked, so that an error's line is the page's own.
    """
    text = page.read_text(encoding="utf-8")
    program = list(re.sub(r"[^\n]", " ", text))
    for block in re.finditer(BLOCK.format(language="python"), text, re.DOTALL | re.MULTILINE):
        program[block.start(1) : block.end(1)] = block.group(1)
    code = "\n".join(line.rstrip() for line in "".join(program).split("\n"))
    expected = re.findall(r"^ *# prints: (.*)$", code, re.MULTILINE)
    assert expected, f"{page}: nothing is printed, so nothing would be checked"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    now = printed.getvalue().splitlines()
    assert now == expected, "\n".join(["", *difflib.ndiff(expected, now)])
