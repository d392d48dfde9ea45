"""The C++ of a lowered graph, compiled while the next graph is lowered.

torch waits for the C++ compiler wherever it has written C++, and has one file compiled after the other. A step is two
graphs (cut.py), and each graph two files, its kernels and what calls them: while the compiler works on both files of
one graph, Python lowers the next.

A file has its name once it is whole. torch writes under that name from the start: of a compiler that is killed it
keeps half a file for good. With half a header nothing compiles any more, and a process that loads half a library ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from gimli_core.compiled.compiler.in_this_thread import replaced

__all__ = ["side_by_side", "whole_files"]

Entry = Callable[..., Any]  # a graph's C++ function, as Python calls it


@contextmanager
def side_by_side() -> Iterator[None]:
    """Within it nobody waits for the C++ compiler; at its end everything is compiled and loaded. Raises what the
    compiler raises, then."""
    from torch._inductor.codecache import CppWrapperCodeCache

    entries: list[_Later] = []
    with ThreadPoolExecutor(thread_name_prefix="gimli_core: C++") as compilers:

        def begun(_: Any) -> Callable[..., Entry]:
            def load(*arguments: Any, **named: Any) -> Entry:
                begin: Callable[..., Any] = CppWrapperCodeCache.load_pybinding_async
                entries.append(_Later(begin(*arguments, submit_fn=submit, **named)))
                return entries[-1]

            return load

        def submit(work: Any) -> Future[None]:
            return compilers.submit(_compiled, *work.args)

        with whole_files(), replaced(CppWrapperCodeCache, "load_pybinding", begun):
            yield
        for entry in entries:
            entry.load()


def whole_files() -> AbstractContextManager[None]:
    """Within it, in this thread, torch's C++ files have their names once they are whole."""
    from torch._inductor import codecache

    return replaced(codecache, "_worker_compile_cpp", lambda _: _compiled)


def _compiled(lock: str, files: Sequence[Any]) -> None:
    """Files, for torch's builders of them: side by side, but for the last, which may be linked of the others."""
    from torch._inductor.codecache import LOCK_TIMEOUT
    from torch.utils._filelock import FileLock

    *parts, last = files
    with FileLock(lock, timeout=LOCK_TIMEOUT):  # another process may be at the same files
        with ThreadPoolExecutor(len(parts) or 1) as compilers:
            for made in [compilers.submit(_make, part) for part in parts]:
                made.result()
        _make(last)


def _make(file: Any) -> None:
    """One file, unless it is there. Raises what the compiler raises."""
    from torch._inductor import cpp_builder

    target = Path(file.get_target_file_path())
    if target.exists():
        return
    for left in target.parent.glob(f"{target.name}.*.*"):
        if _has_ended(int(left.name.split(".")[-2])):
            left.unlink(missing_ok=True)
    # Graphs with the same kernels have that file in common, and a thread each.
    growing = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        cpp_builder.run_compile_cmd(file.get_command_line().replace(str(target), str(growing)), cwd=str(target.parent))
        growing.replace(target)
    finally:
        growing.unlink(missing_ok=True)


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:  # or it is somebody else's
        return isinstance(error, ProcessLookupError)
    return False


class _Later:
    """A graph's C++ function, once it is loaded."""

    def __init__(self, ready: Callable[[], Entry]) -> None:
        self._ready = ready
        self._entry: Entry | None = None

    def load(self) -> Entry:
        """Waits until it is compiled. Raises what the compiler raises."""
        if self._entry is None:
            self._entry = self._ready()
        return self._entry

    def __call__(self, *arguments: Any) -> Any:
        return (self._entry or self.load())(*arguments)
