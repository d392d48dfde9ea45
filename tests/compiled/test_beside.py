"""A fork that compiles beside the run: whatever becomes of it, the run goes on and nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gimli_core.compiled import beside
from gimli_core.compiled.beside import Beside, can_fork

pytestmark = pytest.mark.skipif(can_fork(torch.device("cpu")) is not None, reason="nothing can be forked here")


def in_the_end(forked: Beside, seconds: float = 60.0) -> str:
    """What a fork says; it must end within some seconds."""
    end = time.monotonic() + seconds
    while not forked.ended():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert forked.said is not None
    return forked.said


def left_behind(forked: Beside) -> bool:
    """Whether a process, a zombie or a folder of it is still there."""
    return processes_of(os.getpid()) or Path(forked._folder).exists()


def processes_of(parent: int) -> bool:
    """Whether a process has a child, living or dead."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def test_it_says_what_its_work_returns() -> None:
    forked = Beside(lambda: "compiled", 60.0)
    assert in_the_end(forked) == "compiled"
    assert not forked.failed
    assert not left_behind(forked)


def test_it_computes_with_as_many_threads_as_the_process_which_has_computed_too() -> None:
    """The number is written into what is compiled; and the threads of OpenMP are not forked."""
    before, x = torch.get_num_threads(), torch.ones(400, 400)

    def work() -> str:
        for _ in range(2):
            total = (x @ x).sin().sum().item()
        return f"{torch.get_num_threads()} threads, {total:.3f}"

    torch.set_num_threads(2)
    try:
        expected = work()
        forked = Beside(work, 60.0)
        assert in_the_end(forked) == expected
    finally:
        torch.set_num_threads(before)


def failing() -> str:
    raise ValueError("the compiler does not know this\nand more")


def killed() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def hanging() -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it does not heed a request either
    time.sleep(600)
    return "never"


@pytest.mark.parametrize(
    ("work", "seconds", "reason"),
    [
        (failing, 60.0, "ValueError: the compiler does not know this"),
        (killed, 60.0, "its process ended with status 9"),
        (hanging, 0.2, "it had not ended after 0 s"),
    ],
)
def test_it_fails_alone(work: Callable[[], str], seconds: float, reason: str) -> None:
    forked = Beside(work, seconds)
    assert in_the_end(forked) == reason
    assert forked.failed
    assert not left_behind(forked)


def with_a_child() -> str:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], check=False)
    return "never"


def test_it_is_ended_with_all_that_it_started_once_nobody_holds_it() -> None:
    forked = Beside(with_a_child, 60.0)
    pid, folder = forked._ended.peek()[2][0], Path(forked._folder)  # type: ignore[index]
    while not processes_of(pid):
        time.sleep(0.02)
    del forked
    gc.collect()
    assert not processes_of(os.getpid())
    assert not processes_of(pid)
    assert not folder.exists()


def test_it_has_no_part_in_the_files_of_the_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two processes with one open file would share its place in it."""
    path = tmp_path / "batches"
    path.write_text("0123456789")
    with path.open() as file:
        file.read(1)

        def work() -> str:
            print("said by the fork")
            os.lseek(file.fileno(), 7, os.SEEK_SET)
            return "never"

        assert "Bad file descriptor" in in_the_end(Beside(work, 60.0))
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 10  # where the first read has left it
    assert capfd.readouterr().out == ""


def test_it_may_be_waited_for_by_someone_else() -> None:
    forked = Beside(lambda: "done", 60.0)
    os.waitpid(forked._ended.peek()[2][0], 0)  # type: ignore[index]
    assert in_the_end(forked) == "done"
    assert not forked.failed


def test_a_fork_of_the_process_does_not_end_it() -> None:
    forked = Beside(lambda: (time.sleep(0.5), "done")[1], 60.0)
    pid, parent, folder = forked._ended.peek()[2]  # type: ignore[index]
    beside._end(pid, parent + 1, folder)
    assert in_the_end(forked) == "done"


def test_a_process_that_cannot_be_forked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused() -> int:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(os, "fork", refused)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Beside(lambda: "never", 60.0)
    assert not list(tmp_path.iterdir())
    assert can_fork(torch.device("cuda")) == "a process that uses cuda cannot be forked"


@pytest.mark.long
def test_it_ends_with_the_process_that_it_serves() -> None:
    """Here that one is killed, and cannot end anything itself."""
    script = (
        "import time, os, signal\n"
        "from gimli_core.compiled.beside import Beside\n"
        "forked = Beside(lambda: (time.sleep(600), 'never')[1], 600.0)\n"
        "print(forked._ended.peek()[2][0], forked._folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid, folder = done.stdout.split()
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() or Path(folder).exists():
        assert time.monotonic() < end
        time.sleep(0.05)
