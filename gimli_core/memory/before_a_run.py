"""What a call does before its run is counted by a budget too: it tries the losses on copies, compiles, runs ahead.

All of that is gone when the run begins, so that a budget needs the higher of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import unexpected
from gimli_core.memory.allocator import long_lived, occupied, separates
from gimli_core.memory.pages import with_libraries
from gimli_core.memory.pilot import PIECES
from gimli_core.memory.schedules.budget import AHEAD, Budget
from gimli_core.memory.schedules.sizes import show_size

__all__ = ["before_a_run", "room_for_copies", "taken_ahead"]

COPIES = 2  # of a batch that are alive at a time: one as it was, and one that a loss is called with


@contextmanager
def before_a_run(schedule: Any) -> Iterator[Callable[[], Any]]:
    """Within it, what a budgeted call does before its run is watched, and its large blocks leave no holes. Gives a
    function: the schedule, of a budget with the most bytes that were occupied so far.
    """
    if not isinstance(schedule, Budget) or schedule.before is None or not separates():
        yield lambda: schedule
        return
    before, ahead = schedule.before, schedule.ahead
    with long_lived(), occupied(libraries=True) as most:
        above = with_libraries() - before
        yield lambda: schedule.of_call(before, max(ahead, above + most()))


def taken_ahead(budget: Budget) -> int:
    """Bytes that a budget must have for what came before the run; it differs a little from process to process."""
    return budget.ahead if budget.ahead <= budget.bytes else budget.ahead + PIECES // 2


def room_for_copies(schedule: Any, inputs: Inputs) -> None:
    """Raise if a budget is below what the copies take on which the losses are tried: told before any is made."""
    if not isinstance(schedule, Budget) or inputs.device.type != "cpu":
        return
    values = inputs.values
    batches = [values.last_val_batch, *([values.batch(0)] if inputs.form.steps > 0 else [])]
    need = COPIES * max(map(_bytes, batches)) + _bytes([values.theta_0, values.frozen, values.phi_loss])
    if need > max(schedule.bytes, PIECES):  # with less, the run can say what would do for all of it
        expected = f"at least {show_size(need)}, and what a step takes, before the run"
        do = f"The losses are tried on copies of theta and of a batch, two at a time: {AHEAD}."
        raise unexpected(f"Budget({schedule.size!r})", expected, show_size(schedule.bytes), do)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(tree) if isinstance(leaf, (Tensor, np.ndarray)))
