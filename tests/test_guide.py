"""The guide's pages run as printed, in order, and every link leads to something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gimli_core.step_through.lessons import LESSONS
from tests.pages import ROOT, blocks, links, run_as_printed

GUIDE = ROOT / "examples" / "guide"
PAGES = sorted(page for page in GUIDE.rglob("*.md"))
WITH_CODE = [page for page in PAGES if blocks(page, "python")]
LONG: set[str] = set()


def named(page: Path) -> str:
    return page.relative_to(GUIDE).with_suffix("").as_posix()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] if named(page) in LONG else [], id=named(page)) for page in WITH_CODE],
)
def test_a_page_runs_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes is gone afterwards
    torch.set_default_dtype(torch.float32)
    run_as_printed(page)


@pytest.mark.long
def test_the_processor_does_not_show_in_what_is_printed() -> None:
    """All pages and the README again by torch's and MKL's plainest kernels, which round otherwise: a page that learns
    in float32 printed other numbers on another processor.
    """
    plain = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "-k", "runs_as_printed"]
    files = ["tests/test_guide.py", "tests/test_readme.py"]
    done = subprocess.run(
        [*again, *files], cwd=ROOT, env=os.environ | plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(WITH_CODE) + 1} passed" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_something(page: Path) -> None:
    targets = [target.partition("#")[0] for target in links(page)]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_the_gallery_has_every_lesson() -> None:
    gallery = (ROOT / "examples" / "guide" / "gallery.md").read_text(encoding="utf-8")
    assert re.findall(r'"lessons/(\w+)\.html"', gallery) == ["index", *LESSONS]


@pytest.mark.long
def test_the_program_of_processes_runs_under_torchrun(tmp_path: Path) -> None:
    page = GUIDE / "processes.md"
    program = tmp_path / "program.py"
    end = "distributed.destroy_process_group()"  # as the page says
    program.write_text("\n".join([*blocks(page, "python")[:2], end]), encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    # Three answers of each rank; their lines may run into one another.
    assert (done.stdout.count("True"), done.stdout.count("False")) == (6, 0)
