"""Compiling beside the eager run: in a forked process, which leaves torch's cache on the disk filled.

Nothing of the process that runs is waited for and nothing in it is touched: a fork has the losses, whatever they are,
and works on copies. (A thread would not do: `torch.func.functional_call` puts traced weights into the very module that
the run uses.) What the fork has compiled it throws away; compiling the same again finds every part on the disk.

The fork runs at low priority, with no file of the process's open, standard streams included; a loss that
reads or writes one fails there, and stays eager. It ends by itself: at its bound, and when the process that it
serves is gone. What it needs besides the cache lies in a folder of its own, which goes with it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from gimli_core.errors import first_line

__all__ = ["Beside", "can_fork"]

SAID = "said"  # the file in which a fork leaves what it has to say
GRACE = 0.5  # seconds between the request to end and the end


def can_fork(device: torch.device) -> str | None:
    """None where compiling beside the run works; else why not."""
    if device.type != "cpu":
        return f"a process that uses {device.type} cannot be forked"
    if not sys.platform.startswith("linux"):
        return f"on {sys.platform} a process that computes cannot be forked"
    return None


class Beside:
    """`work()` in a forked process, until it ends or `seconds` have passed.

    Attributes:
        said: what `work` returned, once it has ended; None until then.
        failed: whether it did not end well; `said` is the reason then.

    Raises:
        OSError: the process could not be made.
    """

    def __init__(self, work: Callable[[], str], seconds: float) -> None:
        self.said: str | None = None
        self.failed = False
        self._seconds, self._start = seconds, time.monotonic()
        self._folder = tempfile.mkdtemp(prefix="gimli-compile-")
        parent = os.getpid()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that threads are not forked: here they are not needed
                pid = os.fork()
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        if pid == 0:
            _in_the_fork(work, parent, self._folder, seconds)  # does not return
        self._ended = weakref.finalize(self, _end, pid, parent, self._folder)

    def ended(self) -> bool:
        """Whether it has ended, well or not. Waits for nothing."""
        if self.said is not None:
            return True
        if time.monotonic() - self._start > self._seconds:
            self._close(f"it had not ended after {self._seconds:.0f} s", failed=True)
            return True
        pid, *_ = self._ended.peek()[2]  # type: ignore[index]
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # someone else has waited for it
            done, status = pid, 0
        if not done:
            return False
        said = Path(self._folder, SAID)
        text = said.read_text() if said.exists() else ""
        failed, _, reason = text.partition(" ")
        ended_by = f"its process ended with status {status}"
        self._close(reason if text else ended_by, failed=failed != "done")
        return True

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self.said is None:
            self._close("it was stopped", failed=True)

    def _close(self, said: str, *, failed: bool) -> None:
        self.said, self.failed = said, failed
        self._ended()


def _end(pid: int, parent: int, folder: str) -> None:
    """End a fork with all that it has started, and remove its folder. A fork of the parent has no part in it."""
    if os.getpid() != parent:
        return
    for ending, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 10.0)):
        if _is_gone(pid, 0.0):
            break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, ending)  # a compiler removes its files when it is asked to end
        if _is_gone(pid, patience):
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what it started and has not taken along
    shutil.rmtree(folder, ignore_errors=True)


def _is_gone(pid: int, patience: float) -> bool:
    """Whether a child has ended, and been waited for, within some seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.01)


def _in_the_fork(work: Callable[[], str], parent: int, folder: str, seconds: float) -> None:
    """All that the forked process does. Ends it."""
    code = 1
    try:
        _settle_in(parent, folder, seconds)
        try:
            text = f"done {_in_a_new_thread(work, torch.get_num_threads())}"
            code = 0
        except BaseException as error:
            text = f"failed {first_line(error) if isinstance(error, Exception) else type(error).__name__}"
        unfinished = Path(folder, SAID + ".part")
        unfinished.write_text(text)
        unfinished.rename(Path(folder, SAID))
    finally:
        os._exit(code)


def _in_a_new_thread(work: Callable[[], str], threads: int) -> str:
    """What `work` returns, in a thread that has not met OpenMP.

    OpenMP's team belongs to the thread that led it, and its members are not forked: the leader would wait for them for
    ever. The number of threads stays the process's: it is written into what is compiled.
    """
    outcome: list[str | BaseException] = []

    def run() -> None:
        torch.set_num_threads(threads)
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _settle_in(parent: int, folder: str, seconds: float) -> None:
    """Apart from the process that was forked: its files, its signals, its terminal, its priority."""
    os.setsid()  # a group of its own, to be ended as one
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(name, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.setitimer(signal.ITIMER_REAL, seconds + 10)  # where even the watch hangs
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 2**16))
    threading.Thread(target=_watch, args=(parent, folder, seconds), daemon=True).start()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # where they are errors, the compiler's own would be too
    gc.freeze()  # what is not looked at is not copied
    os.nice(5)  # beside a run that keeps every processor busy it still gets a quarter of one
    os.environ["TMPDIR"] = folder  # of the C++ compiler


def _watch(parent: int, folder: str, seconds: float) -> None:
    """End the fork and what it has started at its bound, or when nobody waits for it any more."""
    end = time.monotonic() + seconds
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
