"""Files and directories that others change, race for, or have made: refused or left alone, never believed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError, StorageError
from gimli_core.memory import Budget, Checkpoint, scratch
from gimli_core.memory.files import read_file, write_file
from gimli_core.memory.schedules.actions import Tier
from gimli_core.memory.scratch import PREFIX, remove_scratch, scratch_directory
from gimli_core.memory.storage import Storage
from gimli_core.memory.way import make_way, remove_way
from gimli_core.record import Point
from tests.memory.forging import forge, places, put

TREE = {"theta": {"w": torch.arange(6.0).reshape(2, 3)}, "state": {"step": torch.tensor(1.0), "slot": {}}}
NUMBERS = [None, True, -1, 2**62, 1.5, "x", [], {}]


def test_every_forged_field_of_a_header_is_read_as_something_whole_or_refused(tmp_path):
    """Anything in place of anything: a StorageError, or tensors of the bytes that are there; nothing else."""
    path, seen = tmp_path / "a", []
    write_file(path, TREE, {"j": 4})
    forge(path, lambda header: seen.extend(places(header)))
    assert ("tensors", 0, 1) in seen
    refused = 0
    for place in seen:
        for value in [..., *NUMBERS]:
            write_file(path, TREE, {"j": 4})
            forge(path, lambda header, place=place, value=value: put(header, place, value))
            try:
                read_file(path, {"j": 4})
            except StorageError:
                refused += 1
    assert refused > 0.7 * len(seen) * (len(NUMBERS) + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(format=99),
        lambda h: h.update(more=1),
        lambda h: h["extra"].update(j=5),
        lambda h: h["tensors"][0].__setitem__(1, "Tensor"),
        lambda h: h["tensors"][0].__setitem__(2, [2**40, 2**10]),
        lambda h: h["tensors"][0].__setitem__(2, [0, 2**47, 2**47]),
        lambda h: h["tensors"][0].__setitem__(3, [0, 0]),
        lambda h: h["tensors"][0].__setitem__(4, "meta"),
        lambda h: h["tensors"].append(h["tensors"][0]),
    ],
)
def test_a_forged_header_is_refused(change, tmp_path):
    write_file(tmp_path / "a", TREE, {"j": 4})
    forge(tmp_path / "a", change)
    with pytest.raises(StorageError, match="as it was written"):
        read_file(tmp_path / "a", {"j": 4})


def test_more_bytes_than_were_written(tmp_path):
    write_file(tmp_path / "a", TREE, {})
    with open(tmp_path / "a", "ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match="more bytes"):
        read_file(tmp_path / "a")


def test_empty_dicts_come_back(tmp_path):
    tree = {"none": {}, "theta": {"w": torch.ones(2), "inner": {"empty": {}}}}
    write_file(tmp_path / "a", tree, {})
    found, _ = read_file(tmp_path / "a")
    assert found["none"] == {}
    assert found["theta"]["inner"] == {"empty": {}}


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_a_rule_with_a_slot_without_entries_runs_from_disk(shape, tmp_path):
    def loss(theta, phi, target):
        return ((theta["w"] - target) ** 2).sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.Adafactor(lr=0.1))
    found, expected = (
        gimli.meta_gradient(
            problem,
            {"w": torch.ones(shape)},
            [torch.zeros(shape)] * 5,
            torch.zeros(shape),
            phi_opt={"lr": 0.1},
            memory=memory,
        )
        for memory in (Checkpoint(1, tmp_path), None)
    )
    assert torch.equal(found.A_opt["lr"], expected.A_opt["lr"])
    assert torch.equal(found.B_0["w"], expected.B_0["w"])


def test_files_and_directories_are_their_owners_alone(tmp_path):
    old = os.umask(0)
    try:
        directory = scratch_directory(tmp_path / "parent")
        write_file(directory / "step-1", TREE, {})
    finally:
        os.umask(old)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name in ("a", "a.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError):
        read_file(tmp_path / "a")
    write_file(tmp_path / "a", TREE, {})
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a.tmp").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe needs POSIX")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(StorageError, match="another kind of file"):
        read_file(tmp_path / "a")


def test_a_directory_of_the_users_with_our_prefix_is_left(tmp_path):
    mine = [tmp_path / f"{PREFIX}mine", tmp_path / f"{PREFIX}{'0' * 16}"]
    for directory in mine:
        directory.mkdir()
        (directory / "step-1").write_text("mine")
    (mine[1] / "lock").write_text("mine")
    scratch_directory(tmp_path)
    assert all((directory / "step-1").read_text() == "mine" for directory in mine)


def test_a_file_that_is_not_ours_stays_in_a_directory_that_is(tmp_path):
    storage = Storage(tmp_path)
    storage.put(Point(2, TREE["theta"], TREE["state"], None), Tier.DISK)
    (directory,) = tmp_path.iterdir()
    (directory / "notes").write_text("mine")
    storage.close()
    assert [path.name for path in directory.iterdir()] == ["notes"]


def test_a_forked_child_that_exits_removes_nothing_and_uses_nothing(tmp_path):
    program = """
import os, pathlib, sys, torch
from gimli_core.errors import StorageError
from gimli_core.memory.schedules.actions import Tier
from gimli_core.memory.storage import Storage
from gimli_core.record import Point
storage = Storage(pathlib.Path(sys.argv[1]))
storage.put(Point(2, {"w": torch.ones(2)}, {}, None), Tier.DISK)
if os.fork() == 0:
    try:
        storage.put(Point(3, {"w": torch.ones(2)}, {}, None), Tier.DISK)
    except StorageError as error:
        sys.exit(0 if "forked child" in str(error) else 1)
    sys.exit(1)
assert os.wait()[1] == 0
assert torch.equal(storage.get(2).theta["w"], torch.ones(2))
if os.fork() == 0:
    storage.close()
    sys.exit(0)
assert os.wait()[1] == 0
assert torch.equal(storage.get(2).theta["w"], torch.ones(2))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


RACE = """
import pathlib, sys
from gimli_core.memory.scratch import remove_scratch, scratch_directory
import os
for _ in range(int(sys.argv[2])):
    directory = scratch_directory(pathlib.Path(sys.argv[1]))
    (directory / "step-1").write_bytes(b"x")
    assert (directory / "step-1").read_bytes() == b"x"
    remove_scratch(directory, os.getpid())
"""


@pytest.mark.parametrize("times", [40, pytest.param(600, marks=pytest.mark.long)])
@pytest.mark.parametrize("way", ["", "made/on/the/way"])
def test_processes_race_on_one_directory(way, times, tmp_path):
    racing = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path / way), str(times)]) for _ in range(3)]
    assert [process.wait() for process in racing] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", [1, 30])
def test_a_run_that_loses_every_race_at_first_goes_on(lost, tmp_path, monkeypatch):
    """Others remove the directory between two of its steps, as often as a loaded machine lets them."""
    left = [lost]

    def made_and_gone(place):
        make_way(place)
        if left[0]:
            left[0] -= 1
            remove_way(place)

    monkeypatch.setattr(scratch, "make_way", made_and_gone)
    directory = scratch_directory(tmp_path / "on" / "the" / "way")
    assert left == [0]
    assert directory.is_dir()
    remove_scratch(directory, os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_nothing_is_told_as_what_it_is(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=r"disk: expected a directory .*link is a link to what is not there"):
        scratch_directory(tmp_path / "link" / "within")


def test_threads_race_on_one_directory(tmp_path):
    failed = []

    def start():
        try:
            for _ in range(20):
                storage = Storage(tmp_path)
                storage.put(Point(1, TREE["theta"], TREE["state"], None), Tier.DISK)
                storage.get(1)
                storage.close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_outgrows_its_room_leaves_nothing(tmp_path):
    """A limit on files' sizes stands for a disk that fills up in the midst of a file."""
    program = """
import pathlib, resource, signal, sys, torch
from gimli_core.errors import StorageError
from gimli_core.memory.files import read_file, write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = pathlib.Path(sys.argv[1]) / "a"
write_file(path, {"t": torch.ones(10)}, {"old": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    write_file(path, {"t": torch.ones(10000)}, {})
except StorageError as error:
    assert "expected room" in str(error)
else:
    sys.exit(1)
assert read_file(path)[1] == {"old": 1}
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("disk", [3, b"x", "a\0b", "\ud800", ["a"]])
def test_what_cannot_be_a_directory(disk):
    for schedule in (lambda: Checkpoint(2, disk), lambda: Budget("1GB", disk)):
        with pytest.raises(ArgumentError, match=r"disk.*path of a directory"):
            schedule()
