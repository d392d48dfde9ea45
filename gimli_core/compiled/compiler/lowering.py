"""Traced graphs lowered to C++, and what every one of them needs of the C++ compiler.

Which vector instructions there are is found out by compiling, and torch's headers are compiled once for a machine:
together they take the C++ compiler longer than the kernels of a small network. A thread sees to both while the first
graph is still traced; torch's own code, which makes them where a graph is lowered, finds them made.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from gimli_core.compiled.compiler.indexes import polynomials_as_they_are
from gimli_core.compiled.compiler.side_by_side import side_by_side, whole_files
from gimli_core.compiled.compiler.unlogged import unlogged

__all__ = ["lowered", "make_ahead", "wait_for_instructions", "without_proxies"]

_one = threading.Lock()
_thread: threading.Thread | None = None
_instructions_known = threading.Event()  # set once nobody is finding them out: torch does that for one thread only


def make_ahead(options: Mapping[str, Any]) -> None:
    """Begin, at the first call in a process; for functions that are compiled to C++ with these options."""
    global _thread
    if not options.get("cpp_wrapper"):
        return
    with _one:
        if _thread is not None:
            return
        from torch._inductor import codecache  # noqa: F401  here, as no two threads should import the compiler at once

        # A daemon: a process that has nothing more to compile need not wait for it.
        _thread = threading.Thread(target=_make, args=(dict(options),), name="gimli_core: compiling ahead", daemon=True)
        _thread.start()


def wait_for_instructions() -> None:
    """Before a graph is lowered: wait until the thread, if there is one, has found out which instructions there are."""
    thread = _thread
    while thread is not None and thread.is_alive():  # it is not in a process forked from the one that has it
        if _instructions_known.wait(0.1):
            return


def lowered(module: Any, inputs: Any, **options: Any) -> Any:
    """A traced graph as a function; for options of torch's `compile_fx`."""
    from torch._inductor.compile_fx import compile_fx

    wait_for_instructions()
    with without_proxies(), polynomials_as_they_are(), side_by_side():
        return compile_fx(module, inputs, **options)


def without_proxies() -> AbstractContextManager[None]:
    """Within it, torch does not warn of operations that it calls from C++ by their names: nobody can do anything about
    it."""
    return unlogged("torch._inductor.ir", lambda record: "c-shim" in record.getMessage())


def _make(options: dict[str, Any]) -> None:
    with contextlib.suppress(Exception):  # who needs what is missing will meet the same, and say so
        from torch._inductor import config
        from torch._inductor.codecache import CppWrapperCodeCache
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        with config.patch(options), whole_files():
            pick_vec_isa()
            _instructions_known.set()
            # As a lowered graph does it; not called, the result compiles nothing but the headers.
            nothing = "// headers alone"
            CppWrapperCodeCache.load_async(
                nothing, "cpu", optimized_code=nothing, needs_vec_isa=False, kernel_needs_vec_isa=True
            )
