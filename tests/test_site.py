"""The site builds without a warning, every link in it leads to something, and its search works without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import gimli_core as gimli
from tests.pages import ROOT

SITE = ROOT / "build" / "site"


class Targets(HTMLParser):
    """A page's anchors, and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.anchors |= {named["id"]} if named.get("id") else set()  # type: ignore[arg-type]
        self.links |= {value for key in ("href", "src") if (value := named.get(key)) and tag != "base"}


def read(page: Path) -> Targets:
    targets = Targets()
    targets.feed(page.read_text(encoding="utf-8"))
    return targets


def broken(pages: dict[Path, Targets]) -> set[tuple[str, str]]:
    """(page, link) of links into the site that lead nowhere, anchors included."""
    found = set()
    for page, targets in pages.items():
        for link in targets.links:
            path, anchor = urldefrag(link)
            if "://" in path or path.startswith(("mailto:", "data:")):
                continue
            goal = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            missing = not goal.exists() or (anchor and goal in pages and unquote(anchor) not in pages[goal].anchors)
            if missing and anchor != "top":
                found.add((str(page.relative_to(SITE)), link))
    return found


@pytest.mark.long
def test_the_site(request: pytest.FixtureRequest) -> None:
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "examples/guide", str(SITE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr

    pages = {page: read(page) for page in SITE.rglob("*.html")}
    assert len(pages) > 25
    assert broken({page: targets for page, targets in pages.items() if "lessons" not in page.parts}) == set()
    reference = set().union(*(targets.anchors for page, targets in pages.items() if page.parent.name == "reference"))
    functions_and_classes = {name for name in gimli.__all__ if callable(getattr(gimli, name))}
    assert {name for name in functions_and_classes if f"gimli_core.{name}" not in reference} == set()

    asked = []
    if os.environ.get("GIMLI_NO_BROWSER") == "1":
        return
    page = request.getfixturevalue("browser").new_page(viewport={"width": 390, "height": 800})
    page.on("request", lambda request: request.url.startswith("file:") or asked.append(request.url))
    page.goto((SITE / "search.html").as_uri() + "?q=budget")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    for path in sorted(pages):
        if "lessons" not in path.parts:
            page.goto(path.as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 1, f"{path.relative_to(SITE)} is {wide} px too wide for a phone"
    page.close()
    assert asked == []
