"""A formula that torch has not, met in the midst of a sweep: only where nothing was tried beforehand (check=False)."""

from __future__ import annotations

from gimli_core.derivatives.second_order.choose import BY_GRAPH
from gimli_core.errors import RequirementError, explain

__all__ = ["no_gaps"]


class no_gaps:
    """Products of a mean at step j; what torch has no formula for is told with the way out. Raises RequirementError."""

    def __init__(self, mean: str, j: int) -> None:
        self._mean, self._j = mean, j

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, RuntimeError):
            return
        told = str(error).splitlines()[0].rstrip(".")
        if not isinstance(error, NotImplementedError) and "is not implemented" not in told:
            return
        asked = BY_GRAPH if self._mean == "auto" else self._mean
        expected = f"a loss with torch's formulas of {asked} (inner step j = {self._j})"
        others = "" if asked == BY_GRAPH else f", give second_order={BY_GRAPH!r}"
        do = f"Leave check=True, which takes another means where there is one{others}, or use other operations."
        raise RequirementError(explain("train_loss", expected, told, do)) from error
