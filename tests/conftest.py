"""What every test stands on: float64, fixed seeds, one thread. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from tests.browser import FLAGS, chromium_path

collect_ignore = ["benchmarks"]  # programs, not tests; some need packages of the `bench` extra

torch.set_num_threads(1)
# Without an accelerator torch.manual_seed still notes for each kind who asked, which takes 3 ms.
seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


# Python's collector went through all that a process has imported and compiled again and again, for a fifth of the time
# of the tests that compile. It looks at what is old seldom, and not at all at what a test before has left.
gc.set_threshold(1000, 10, 200)
kept = 0  # blocks of memory, when what was there was last set aside


def keep_what_is_there() -> None:
    global kept
    gc.collect()
    gc.freeze()
    kept = sys.getallocatedblocks()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands beside this file is tried first. The longest tests are there, which start whole programs: left to the
    end, one of several processes would go on with them alone.
    """
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    keep_what_is_there()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium, one a process: Playwright starts no second one beside it."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Each test starts from the same random state, with float64 the default, and leaves the default as it was."""
    if sys.getallocatedblocks() > kept + 200_000:  # torch's compiler was imported, or many graphs were compiled
        keep_what_is_there()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries still draw from it
    seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
