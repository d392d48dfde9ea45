"""A file is written whole or not at all, and where it cannot be is known before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gimli_core.errors import ArgumentError
from gimli_core.memory.atomic_file import check_writable, writing

NO_PLACES = {
    "a NUL": "a\0b",
    "a long name": "x" * 300,
    "a lone surrogate": "\ud800.html",
    "a directory": ".",
    "in no directory": "absent/page.html",
    "in a file": "old/page.html",
    "nothing": "",
    "a loop": "loop",
}


@pytest.mark.parametrize("case", NO_PLACES)
def test_where_no_file_can_be(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("old", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ArgumentError, match="expected a file that can be written"):
        check_writable("--out", NO_PLACES[case])
    with pytest.raises(ArgumentError, match="expected a file that can be written"), writing("--out", NO_PLACES[case]):
        pass
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("value", [None, 3])
def test_what_is_no_path(value: object) -> None:
    with pytest.raises(ArgumentError, match="expected a file that can be written"), writing("path", value):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_failure_leaves_what_stood_there(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    expected = ArgumentError if isinstance(error, OSError) else type(error)

    def write() -> None:
        with writing("--out", path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(expected):
        write()
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_new_file_stands_where_a_link_points_and_keeps_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "page.html", tmp_path / "link"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o640)
    link.symlink_to(path)
    check_writable("--out", link)
    with writing("--out", link) as file:
        file.write(b"new")
        assert path.read_text(encoding="utf-8") == "old"
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8") == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "page.html"]


def test_a_device_is_written_directly() -> None:
    check_writable("--json", os.devnull)
    with writing("--json", os.devnull) as file:
        file.write(b"gone")
    assert not Path(os.devnull).is_file()
