"""A run's directory that others use, fill, mount or change: refused or left alone, and no finished run is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

import gimli_core.memory.directory as directory_module
import gimli_core.runs.journal as journal_module
from gimli_core.errors import ArgumentError, StorageError
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates, scratch
from gimli_core.memory.files import read_file, write_file
from gimli_core.memory.way import make_way
from gimli_core.runs.journal import Journal
from tests.compare import assert_identical
from tests.killing import Killed, forked, killed_after, stopping, until_through
from tests.memory.forging import forge, places, put
from tests.problems import replayed


@pytest.fixture
def stopped(tmp_path):
    """stopped(k, ...) stops a run after its k-th writing and returns its directory."""

    def stop(k, schedule=None, directory=tmp_path / "run", **options):
        with stopping(after=k), pytest.raises(Killed):
            replayed(schedule or StoreStates(), resume=directory, **options)
        return directory

    return stop


def test_a_directory_that_was_there_stays_with_all_that_is_the_users(tmp_path, stopped, monkeypatch):
    directory = tmp_path / "mine"
    (directory / "point-dir").mkdir(parents=True)
    names = ("point-cloud.npz", "point-1.csv", "point-01", "progress.tmp", "point-3.tmp", "lock")
    for name in names:
        (directory / name).write_text(name)
    stopped(6, directory=directory)
    monkeypatch.chdir(directory)
    assert_identical(replayed(StoreStates(), resume="."), replayed(RetainGraphs()))
    assert {path.name for path in directory.iterdir()} == {"point-dir", *names}
    assert all((directory / name).read_text() == name for name in names)


@pytest.mark.parametrize("name", ["", "."])
def test_an_empty_directory_that_was_there_stays(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journal_module, "SECONDS", 0.0)
    replayed(StoreStates(), resume=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_users_point_3_is_refused_before_it_is_in_the_way(kind, tmp_path):
    path = tmp_path / "point-3"
    {"file": path.touch, "directory": path.mkdir, "link": lambda: path.symlink_to(tmp_path / "x")}[kind]()
    with pytest.raises(ArgumentError, match="point-3, which no run has written"):
        replayed(StoreStates(), resume=tmp_path)
    assert os.path.lexists(path)


def test_links_are_not_written_through(tmp_path, stopped):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("progress.tmp", "point-1.tmp", "point-2.tmp"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    stopped(5)
    replayed(StoreStates(), resume=tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"


def test_nothing_is_readable_by_others(stopped):
    old = os.umask(0)
    try:
        directory = stopped(5)
    finally:
        os.umask(old)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("failing", ["rmdir", "unlink"])
def test_a_finished_run_is_not_lost_to_clearing_up(failing, tmp_path, stopped, monkeypatch):
    directory, expected = stopped(5), replayed(RetainGraphs())

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    finish = Journal.finish

    def finish_in_vain(self):
        with monkeypatch.context() as patch:
            patch.setattr(os, failing, refuse)
            finish(self)

    monkeypatch.setattr(Journal, "finish", finish_in_vain)
    assert_identical(replayed(StoreStates(), resume=directory), expected)
    assert directory.exists()
    monkeypatch.setattr(Journal, "finish", finish)
    assert_identical(replayed(StoreStates(), resume=directory), expected)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size", ["8m", "24k"])
def test_a_mounted_volume(size, tmp_path, monkeypatch):
    """It cannot be removed; a small one fills up, and what the run had reached then is still whole."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    monkeypatch.setattr(journal_module, "SECONDS", 0.0)
    try:
        if size == "8m":
            assert_identical(replayed(StoreStates(), resume=tmp_path), replayed(RetainGraphs()))
            assert list(tmp_path.iterdir()) == []
        else:
            with pytest.raises(StorageError, match="No space left on device"):
                replayed(StoreStates(), resume=tmp_path)
            assert not any("gimli" in path.name for path in tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_point_of_another_run_or_step_is_refused(tmp_path, stopped):
    directory = stopped(6)
    other = stopped(6, directory=tmp_path / "other")
    shutil.copy(other / "point-2", directory / "point-2")
    with pytest.raises(StorageError, match=r"point-2.*run '.*written"):
        replayed(StoreStates(), resume=directory)
    directory = other
    shutil.copy(directory / "point-1", directory / "point-2")
    with pytest.raises(StorageError, match="j 1 where 2 was written"):
        replayed(StoreStates(), resume=directory)


def test_points_without_progress_are_of_no_run_and_go(tmp_path, stopped):
    directory = stopped(6)
    (directory / "progress").unlink()
    assert (directory / "point-1").exists()
    stopped(1)
    assert not (directory / "point-2").exists()
    assert_identical(replayed(StoreStates(), resume=directory), replayed(RetainGraphs()))


@pytest.mark.parametrize("k", [4, 14])
def test_forged_fields_of_progress_are_refused_or_change_no_number(k, stopped, tmp_path):
    """In place of any plain value, anything: refused, or the same numbers; never another exception."""
    whole, expected, refused = stopped(k, Checkpoint(2)), replayed(Checkpoint(2)), 0
    _, extra = read_file(whole / "progress")
    seen = [place for place in places(extra) if place[0] not in ("generators", "left") or len(place) < 3]
    for place in seen:
        for value in (..., None, -1, 10**9, "x", []):
            directory = tmp_path / "forged"
            shutil.copytree(whole, directory)
            forge(directory / "progress", lambda h, place=place, value=value: put(h["extra"], place, value))
            try:
                assert_identical(replayed(Checkpoint(2), resume=directory), expected)
            except (StorageError, ArgumentError):
                refused += 1
            shutil.rmtree(directory, ignore_errors=True)
    assert refused > 0.7 * 6 * len(seen)


@pytest.mark.parametrize("name", ["adjoints", "along", "losses", "val_losses", "start", "end"])
def test_progress_without_some_tensors_is_refused(name, stopped):
    directory = stopped(14, Checkpoint(2))
    tree, extra = read_file(directory / "progress")
    del tree[name]
    write_file(directory / "progress", tree, extra)
    with pytest.raises(StorageError, match="as it was written"):
        replayed(Checkpoint(2), resume=directory)


def test_a_file_does_not_say_where_to_write(stopped, tmp_path, monkeypatch):
    directory = stopped(6, Checkpoint(1, tmp_path / "disk"))
    made = []
    monkeypatch.setattr(scratch, "make_way", lambda place: (made.append(place), make_way(place)))
    with pytest.raises(ArgumentError, match="disk=PATH"):
        replayed(Checkpoint(1), resume=directory)
    found = replayed(Checkpoint(1, tmp_path / "other"), resume=directory)
    assert_identical(found, replayed(RetainGraphs()))
    assert made == [tmp_path / "other"]


def test_a_second_process_is_told(tmp_path, stopped):
    directory = stopped(5)
    program = """
import fcntl, os, sys
held = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ArgumentError, match="another run is using"):
            replayed(StoreStates(), resume=directory)
        assert (directory / "progress").exists()
        other.stdin.close()
    replayed(StoreStates(), resume=directory)
    assert not directory.exists()


@pytest.mark.parametrize("value", [3, b"x", "a\0b", "\ud800", ["a"]])
def test_what_cannot_be_a_directory(value, monkeypatch):
    monkeypatch.setattr("gimli_core.runs.make_run.prepare", lambda **_: pytest.fail("work was begun"))
    with pytest.raises(ArgumentError, match=r"resume: expected the path of a directory"):
        replayed(None, resume=value)


def test_a_failed_run_lets_go_of_its_directory(tmp_path, stopped):
    directory = stopped(3)
    with pytest.raises(ArgumentError, match="another problem") as first:
        replayed(StoreStates(), steps=4, resume=directory)
    with pytest.raises(ArgumentError, match="another problem"):
        replayed(StoreStates(), steps=4, resume=directory)
    assert first
    replayed(StoreStates(), resume=directory)
    assert not directory.exists()


def test_a_run_that_cannot_write_leaves_no_directory(tmp_path, monkeypatch):
    """The directory was made for it; an empty one that stays would be taken for the user's own, and never go."""

    def full(path, *arguments, **options):
        raise StorageError(f"{path}: no room")

    monkeypatch.setattr(journal_module, "SECONDS", 0.0)
    monkeypatch.setattr(journal_module, "write_file", full)
    with pytest.raises(StorageError, match="no room"):
        replayed(Checkpoint(2), resume=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(StorageError, match="no room"):
        replayed(Checkpoint(2), resume=tmp_path / "mine")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals to forked children need POSIX")
@pytest.mark.parametrize("moment", ["mkdir", "create", "unlink"])
def test_killed_between_making_the_directory_and_the_first_writing(moment, tmp_path, monkeypatch):
    """The next run begins there as in a user's own directory, which stays: all that the killed one has cost."""
    expected = replayed(RetainGraphs())
    home = directory_module if moment == "create" else os
    with monkeypatch.context() as patch:
        patch.setattr(home, moment, killed_after(getattr(home, moment)))
        child = forked(lambda: replayed(StoreStates(), resume=tmp_path / "a" / "run"))
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    found = until_through(lambda: replayed(StoreStates(), resume=tmp_path / "a" / "run"))
    assert_identical(found, expected)
    assert [path.name for path in (tmp_path / "a").iterdir()] in ([], ["run"])
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", *(tmp_path / "a").iterdir()]
