"""A formula that torch has not, met in the midst of a sweep: only where nothing was tried beforehand (check=False)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gimli_core.derivatives.second_order.choose import BY_GRAPH
from gimli_core.errors import RequirementError, explain

__all__ = ["no_gaps"]


@contextmanager
def no_gaps(mean: str, j: int) -> Iterator[None]:
    """Products of a mean at step j; what torch has no formula for is told with the way out. Raises RequirementError."""
    try:
        yield
    except RuntimeError as error:
        told = str(error).splitlines()[0].rstrip(".")
        if not isinstance(error, NotImplementedError) and "is not implemented" not in told:
            raise
        asked = BY_GRAPH if mean == "auto" else mean
        expected = f"a loss with torch's formulas of {asked} (inner step j = {j})"
        others = "" if asked == BY_GRAPH else f", give second_order={BY_GRAPH!r}"
        do = f"Leave check=True, which takes another means where there is one{others}, or use other operations."
        raise RequirementError(explain("train_loss", expected, told, do)) from error
