"""Indexes of loops, left as they are where nothing in them can be simplified.

For every load and store torch's code generator asks how far apart two neighbours along a loop lie in memory. It calls
sympy's `simplify` on the index first, so that floors and remainders of a loop that is cut into vectors go away: a fifth
of the time in which a network of convolutions is compiled. A polynomial has no floors and no remainders. What is asked
next, the difference of the index at two neighbours, does not depend on the form in which it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

from gimli_core.compiled.compiler.in_this_thread import replaced

__all__ = ["is_polynomial", "polynomials_as_they_are"]


def polynomials_as_they_are() -> AbstractContextManager[None]:
    """Within it, torch's code generator does not simplify an index that is a polynomial. What it writes is the same."""
    from torch._inductor import sizevars

    return replaced(sizevars, "simplify_index_in_vec_range", _simplified)


def is_polynomial(index: Any) -> bool:
    """Whether an index is a polynomial of all loop variables in it."""
    asked = getattr(index, "is_polynomial", None)  # a condition is no number
    return asked is not None and bool(asked())


def _simplified(torchs: Callable[..., Any]) -> Callable[..., Any]:
    @lru_cache(maxsize=4096)  # one index is asked about often: 10,900 questions of 1200 for a graph of 500 operations
    def simplified(index: Any, var: Any, vec_length: int) -> Any:
        return index if is_polynomial(index) else torchs(index, var, vec_length)

    return simplified
