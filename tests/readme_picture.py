"""The README's picture: the step-through page of a lesson, as a browser shows it. `python -m tests.readme_picture`"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import gimli_core as gimli
from tests.browser import FLAGS, chromium_path
from tests.pages import ROOT

PICTURE = ROOT / "examples" / "guide" / "step_through.png"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        page_file = gimli.lessons.LESSONS["momentum"]().save(Path(directory) / "momentum.html")
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 640}, color_scheme="light")
        page.goto(page_file.absolute().as_uri())
        page.locator("body[data-settled=yes]").wait_for()
        for _ in range(14):  # some way into the backward sweep
            page.keyboard.press("ArrowRight")
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
