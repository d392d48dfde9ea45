"""A cursor over a walk: forwards as the engine runs, backwards over what was kept; watches and breakpoints.

Nothing here prints. The terminal view draws what the cursor stands on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gimli_core.errors import ArgumentError, unexpected
from gimli_core.layout import cloned
from gimli_core.notation import slots
from gimli_core.step_through.page.summaries import norm as norm_of
from gimli_core.step_through.page.summaries import total
from gimli_core.step_through.terminal.breakpoints import check_break
from gimli_core.step_through.terminal.expressions import checked, evaluate, quantities_in
from gimli_core.step_through.terminal.kept import Kept
from gimli_core.step_through.walk import Moment, Walk
from gimli_core.trees import tensors

__all__ = ["Stepper"]

KEPT_BYTES = 1 << 30  # of tensors, for going back; older moments keep their norms


class Stepper:
    """Steps through a walk, forwards and backwards.

    Args:
        walk: a fresh one.
        watches, breaks: expressions over the quantities (theta, s, G, V, B, B_next, growth, S, A_opt, A_loss, direct,
            curvature, loss, line, j) in the language of `expressions`. B_next is B_{j+1}, from line 11 to 14; growth
            is the norm of B_j over that of B_{j+1}, at line 14. A break may also be "line 14" or "step 3".
    """

    def __init__(self, walk: Walk, watches: tuple[str, ...] = (), breaks: tuple[str, ...] = ()) -> None:
        self.walk = walk
        self.watches: list[str] = []
        self.breaks: list[str] = []
        for text in watches:
            self.add_watch(text)
        for text in breaks:
            self.add_break(text)
        self.passed: list[Kept] = []
        self.at = -1
        self.ended = False
        self.error: Exception | None = None
        self._latest: Moment | None = None
        self._names: dict[str, Any] = {"theta": walk.inputs.values.theta_0, "s": walk.inputs.values.state_0}
        self._totals: dict[str, Any] = {}
        self._bytes = 0
        self._oldest = 0

    @property
    def here(self) -> Kept:
        """The moment under the cursor. Raises ArgumentError before the first one, or where there is none."""
        if not self.passed:
            do = "The run ended before its first line." if self.ended else "Go on with next."
            raise unexpected("here", "a line that has run", "none so far", do)
        return self.passed[self.at]

    def next(self) -> bool:
        """One line on; False at the end of the run."""
        if self.at + 1 < len(self.passed):
            self.at += 1
            return True
        if self.ended:
            return False
        self._latest = None
        try:
            moment = next(self.walk)
        except StopIteration:
            self.ended = True
            return False
        except Exception as error:
            self.ended, self.error = True, error
            return False
        self._latest = moment
        self._keep(moment)
        self.at += 1
        return True

    def back(self, count: int = 1) -> bool:
        """`count` lines back, or to the first; False at the first."""
        self.at = max(self.at - count, 0) if self.passed else -1
        return self.at > 0

    def until(self, reached: Callable[[Kept], bool]) -> bool:
        """On to the next moment of which `reached` is true; False where the run ends first."""
        while self.next():
            if reached(self.here):
                return True
        return False

    def to(self, line: int | None = None, step: int | None = None) -> bool:
        """To the next moment on this line or step, else to the last one before; False, unmoved, where there is none."""

        def hit(kept: Kept) -> bool:
            return (line is None or kept.line == line) and (step is None or kept.j == step)

        start = self.at
        if self.until(hit):
            return True
        for i in reversed(range(start)):
            if hit(self.passed[i]):
                self.at = i
                return True
        self.at = start
        return False

    def run(self) -> str | None:
        """On to the next breakpoint, which is returned; None at the end."""
        while self.next():
            for text in self.breaks:
                if self._breaks(text):
                    return text
        return None

    def add_break(self, text: str) -> None:
        """Break on "line 14", "step 3", or where an expression is true.

        Raises:
            ArgumentError: what can never stop this run: an unknown name, a line or step that it has not.
        """
        text = text.strip()
        check_break(text, self.walk.inputs)
        self.breaks.append(text)

    def add_watch(self, text: str) -> None:
        """Show the value of an expression at every moment."""
        quantities_in(checked(text), self.walk.inputs.values.theta_0)
        self.watches.append(text)

    def evaluate(self, text: str) -> Any:
        """The value of an expression here."""
        return evaluate(text, self.quantities())

    def quantities(self) -> dict[str, Any]:
        """Every quantity that is known here."""
        if self.here.names is None:
            raise unexpected(
                "names",
                "a moment whose tensors are still kept",
                "one that was let go",
                "Norms are kept; go on, or start again.",
            )
        return self.here.names

    def series(self, name: str, index: int) -> dict[str, dict[int, float]]:
        """One scalar parameter through the run so far: {quantity: {j: value}}."""
        series = {"theta": {0: self.walk.inputs.values.theta_0[name].reshape(-1)[index].item()}}
        for kept in self.passed[: self.at + 1]:
            for quantity in ("theta", "G", "V", "B"):
                if quantity in kept.fresh and kept.names is not None and name in kept.names[quantity]:
                    j = kept.j + 1 if kept.line == 6 else kept.j
                    series.setdefault(quantity, {})[j] = kept.names[quantity][name].reshape(-1)[index].item()
        return series

    def change(self, name: str, value: Any) -> None:
        """Intervene at the moment that came last; the cursor must stand there."""
        if self._latest is None or self.at != len(self.passed) - 1:
            raise unexpected(
                "change",
                "the latest moment",
                "an earlier one",
                "What has run cannot be changed: go to the end of what has run.",
            )
        self._latest.change(name, value)
        assert self.here.names is not None
        changed = {**self.here.names, name: self._latest.values[name]}
        if "growth" in changed and name == "B":
            changed["growth"] = _growth(changed["B_next"], changed["B"])
        self.here.names, self._names = changed, changed
        self.here.norms[name] = total([norm_of(t) for t in tensors(changed[name])])

    def _breaks(self, text: str) -> bool:
        kind, _, value = text.partition(" ")
        if kind == "line" and value:
            return self.here.line == int(value)
        if kind == "step" and value:
            return self.here.j == int(value) and (self.at == 0 or self.passed[self.at - 1].j != int(value))
        try:
            value = self.evaluate(text)
        except ArgumentError:  # a quantity that does not exist yet
            return False
        if isinstance(value, Tensor) and value.numel() != 1:
            expected, actual = "a condition that is true or false", f"a tensor of shape {list(value.shape)}"
            do = "For example norm(B) > 1e3. clear forgets all breakpoints."
            raise unexpected(f"break {text!r}", expected, actual, do)
        return bool(value)

    def _keep(self, moment: Moment) -> None:
        values = dict(moment.values)
        if moment.line == 8:
            self._totals = {name: values.pop(name) for name in ("A_opt", "A_loss")}
        increments = {
            f"d{name}": values.pop(name) for name in ("A_opt", "A_loss") if name in values and moment.line in (12, 13)
        }
        names = {**self._names, **increments, **values, "line": moment.line, "j": moment.j}
        for name in ("B_next", "growth"):  # of the lines at which they mean something
            names.pop(name, None)
        if moment.line in (11, 12, 13, 14):
            names["B_next"] = self._names["B" if moment.line == 11 else "B_next"]
        if moment.line == 14:
            names["growth"] = _growth(names["B_next"], names["B"])
        if self._totals and moment.line != 16:
            inputs = self.walk.inputs
            names["A_opt"] = cloned(inputs.values.hyper.join(self._totals["A_opt"]))
            names["A_loss"] = cloned(self._totals["A_loss"])
        self._names = names
        if "s" in values:  # its step counter is no quantity of the algorithm
            values["s"] = slots(values["s"])
            values = values if values["s"] else {k: v for k, v in values.items() if k != "s"}
        shown = {**values, **increments, **({k: names[k] for k in ("A_opt", "A_loss")} if moment.line == 8 else {})}
        shown = {k: v for k, v in shown.items() if v != {}}
        kept = Kept(
            len(self.passed),
            moment.line,
            moment.j,
            moment.replay,
            bool(self._totals),
            moment.seconds,
            moment.bytes,
            {k: total([norm_of(t) for t in tensors(v)]) for k, v in shown.items()},
            names,
            tuple(shown),
        )
        self.passed.append(kept)
        self._bytes += moment.bytes
        while self._bytes > KEPT_BYTES and self._oldest < kept.number:
            old = self.passed[self._oldest]
            old.names = None
            self._bytes -= old.bytes
            self._oldest += 1


def _growth(B_next: Mapping[str, Tensor], B: Mapping[str, Tensor]) -> float:
    """‖B_j‖/‖B_{j+1}‖; infinite, or not a number, where B_{j+1} is 0."""
    before, after = (total([norm_of(t) for t in tree.values()]) for tree in (B_next, B))
    return after / before if before else after * float("inf")
