"""How tests find and start a real Chromium."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

__all__ = ["FLAGS", "chromium_path"]

FLAGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
MISSING = (
    "The pages are tested in a real browser, and there is no Chromium here. Install it (Debian, Ubuntu: "
    "apt-get install chromium), or set GIMLI_CHROMIUM to its path, or set GIMLI_NO_BROWSER=1 to leave these tests out."
)


def chromium_path() -> str:
    """Where Chromium is; the test is skipped where the reader asked for that, and fails where there is none."""
    if os.environ.get("GIMLI_NO_BROWSER") == "1":
        pytest.skip("GIMLI_NO_BROWSER=1")
    path = os.environ.get("GIMLI_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not path or not Path(path).exists():
        pytest.fail(MISSING)
    return path
