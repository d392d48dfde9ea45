"""Pages of lessons, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.step_through.pages import Pages, lesson


@pytest.fixture(scope="session")
def lesson_page(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """A lesson's page, built once in a session."""
    directory = tmp_path_factory.mktemp("lessons")

    def build(name: str) -> Path:
        path = directory / f"{name}.html"
        return path if path.exists() else lesson(name).save(path)

    return build


# Chromium says so where a test, or axe, asks for the style of all that there is; the page itself never does.
ASKED_BY_TESTS = "in a subtree hidden by content-visibility"


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page file; at the end nothing may have been logged, and nothing asked of the network."""
    contexts, trouble = [], []

    def visit(path: Path, address: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1240, "height": 900}, **options})
        context.set_default_timeout(120_000)  # milliseconds: a busy machine may take long to open a page
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: ASKED_BY_TESTS in message.text or trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        document = path.absolute().as_uri()
        page.on("request", lambda request: request.url == document or trouble.append(f"request: {request.url}"))
        page.goto(document + address)
        return page

    visit.trouble = trouble  # type: ignore[attr-defined]
    yield visit
    for context in contexts:
        context.close()
    assert trouble == []
