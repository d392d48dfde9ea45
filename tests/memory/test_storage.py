"""Files on disk: whole or not at all, checked when read, gone when no longer needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gimli_core.memory.scratch as scratch
from gimli_core.errors import ArgumentError, StorageError
from gimli_core.memory import Budget, Checkpoint, StoreStates
from gimli_core.memory.files import read_file, write_file
from gimli_core.memory.schedules.actions import Tier
from gimli_core.memory.scratch import PREFIX, scratch_directory
from gimli_core.memory.storage import Storage
from gimli_core.record import Point
from tests.killing import forked, killed_after
from tests.problems import replayed

TREE = {
    "theta": {"w": torch.arange(6.0).reshape(2, 3), "h": torch.ones(3, dtype=torch.bfloat16)},
    "state": {"step": torch.tensor(3.0), "m": {"w": torch.zeros(0, 2)}},
}


def test_round_trip(tmp_path):
    write_file(tmp_path / "a", TREE, {"j": 4})
    tree, extra = read_file(tmp_path / "a")
    assert extra == {"j": 4}
    for slot in ("w", "h"):
        assert torch.equal(tree["theta"][slot], TREE["theta"][slot])
    assert tree["state"]["step"] == 3
    assert tree["state"]["m"]["w"].shape == (0, 2)
    assert os.listdir(tmp_path) == ["a"]


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path):
    path = tmp_path / "a"
    write_file(path, TREE, {"j": 4})
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        with pytest.raises(StorageError, match="as it was written"):
            read_file(path)
        path.write_bytes(whole[:i])
        with pytest.raises(StorageError, match="as it was written"):
            read_file(path)


def test_a_damaged_file_stops_the_run(tmp_path, monkeypatch):
    get = Storage.get

    def damage(self, j):
        for path in tmp_path.glob(f"{PREFIX}*/step-*"):
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        return get(self, j)

    monkeypatch.setattr(Storage, "get", damage)
    with pytest.raises(StorageError, match="other bytes than were written"):
        replayed(Checkpoint(1, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left on device"):
        replayed(Checkpoint(1, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    program = (
        "import os, sys, pathlib; from gimli_core.memory.storage import scratch_directory;"
        "d = scratch_directory(pathlib.Path(sys.argv[1])); (d / 'step-3').write_bytes(b'x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    mine = scratch_directory(tmp_path)
    other = scratch_directory(tmp_path)  # a living run's is left alone
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals to forked children need POSIX")
@pytest.mark.parametrize("moment", ["mkdir", "create", "write", "rename"])
def test_what_was_killed_while_it_made_its_directory_goes_after_a_time(moment, tmp_path, monkeypatch):
    """Until then it could be one that is just being made."""
    home = {"mkdir": os, "create": scratch, "write": os, "rename": os}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(home, moment, killed_after(getattr(home, moment)))
        assert os.waitpid(forked(lambda: scratch_directory(tmp_path)), 0)[1] == signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / "gimli-new-mine").mkdir()
    scratch_directory(tmp_path)
    assert left.exists() == (moment != "rename")  # which was the last thing to do
    monkeypatch.setattr(scratch, "GRACE", 0.0)
    scratch_directory(tmp_path)
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 3  # two that are in use, and the user's


def test_directories_that_were_made_on_the_way_go_too(tmp_path):
    """And none that was there; what somebody else has put into one stays, with all that is above it."""
    (tmp_path / "mine").mkdir()
    first, second = (Storage(tmp_path / "mine" / "a" / "b" / "c") for _ in range(2))
    first.close()
    assert (tmp_path / "mine" / "a" / "b" / "c").is_dir()  # the one that made it leaves first
    second.close()
    assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]
    third = Storage(tmp_path / "mine" / "a" / "b")
    (tmp_path / "mine" / "a" / "notes").write_text("mine")
    third.close()
    assert (tmp_path / "mine" / "a" / "notes").read_text() == "mine"
    assert not (tmp_path / "mine" / "a" / "b").exists()


@pytest.mark.parametrize("memory", ["checkpoint", "budget"])
def test_a_whole_run_leaves_no_directory_that_it_made(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    disk = Path("nowhere") / "x"
    replayed(Checkpoint(1, disk) if memory == "checkpoint" else Budget("1GB", disk=disk))
    assert [*tmp_path.iterdir()] == []


def test_what_a_killed_process_made_on_the_way_goes_with_the_next(tmp_path):
    disk = tmp_path / "a" / "b"
    assert os.waitpid(forked(lambda: (scratch_directory(disk), os.kill(os.getpid(), signal.SIGKILL))), 0)[1]
    assert any(path.name.startswith(PREFIX) for path in disk.iterdir())
    Storage(disk).close()
    assert [*tmp_path.iterdir()] == []


def test_a_directory_that_cannot_be_made(tmp_path):
    with pytest.raises(ArgumentError, match="a directory that can be written to"):
        replayed(Checkpoint(1, tmp_path / "made" / ("x" * 300)))
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="a directory that can be written to"):
        replayed(Checkpoint(1, tmp_path / "file"))


def test_files_go_with_an_execution_that_is_never_swept(tmp_path):
    storage = Storage(tmp_path)
    storage.put(Point(2, TREE["theta"], TREE["state"], None), Tier.DISK)
    assert list(storage) == [2]
    assert torch.equal(storage.get(2).theta["w"], TREE["theta"]["w"])
    del storage
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo") or os.geteuid() != 0, reason="a small tmpfs needs root")
def test_a_small_tmpfs(tmp_path):
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(StorageError, match="No space left on device"):
            replayed(Checkpoint(1, tmp_path))
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_memory_only_needs_no_directory():
    assert StoreStates().disk is None


def test_a_tensor_comes_back_in_its_order_of_memory(tmp_path: Path) -> None:
    # Kernels sum in the order of memory: another one would change the last bits.
    written = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    write_file(tmp_path / "file", {"t": written, "scalar": torch.tensor(1.0), "empty": torch.empty(0, 2)}, {})
    read, _ = read_file(tmp_path / "file")
    assert torch.equal(read["t"], written)
    assert read["t"].stride() == written.stride()
    assert read["scalar"].shape == ()
    assert read["empty"].shape == (0, 2)
