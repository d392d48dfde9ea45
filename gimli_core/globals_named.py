"""Which globals a function names, as its code says."""

from __future__ import annotations

import dis
import functools
import types

__all__ = ["globals_named"]


@functools.lru_cache(maxsize=1024)
def globals_named(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals that a function and those within it read, and those that they set."""
    read, written, codes = set[str](), set[str](), [code]
    while codes:
        code = codes.pop()
        for operation in dis.get_instructions(code):
            if operation.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(operation.argval)
            elif operation.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                written.add(operation.argval)
        codes.extend(inner for inner in code.co_consts if isinstance(inner, types.CodeType))
    return tuple(sorted(read)), tuple(sorted(written))
