"""A formula that torch has not, met in the midst of a sweep: only where nothing was tried beforehand (check=False)."""

from __future__ import annotations

from gimli_core.derivatives.second_order.choose import BY_GRAPH
from gimli_core.errors import RequirementError, explain

__all__ = ["tell_gap"]


def tell_gap(mean: str, j: int, error: RuntimeError) -> None:
    """Raise RequirementError, with the way out, if a mean met what torch has no formula for, at step j."""
    told = str(error).splitlines()[0].rstrip(".")
    if not isinstance(error, NotImplementedError) and "is not implemented" not in told:
        return
    asked = BY_GRAPH if mean == "auto" else mean
    expected = f"a loss with torch's formulas of {asked} (inner step j = {j})"
    others = "" if asked == BY_GRAPH else f", give second_order={BY_GRAPH!r}"
    do = f"Leave check=True, which takes another means where there is one{others}, or use other operations."
    raise RequirementError(explain("train_loss", expected, told, do)) from error
