"""Keep a few states, and run the steps between them again: optimal (binomial) checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gimli_core.errors import check_switch, unexpected
from gimli_core.memory.directory import directory_of
from gimli_core.memory.schedules.actions import (
    Action,
    Advance,
    Drop,
    Keep,
    Restore,
    Schedule,
    Store,
    Sweep,
    Tier,
    Validate,
)
from gimli_core.memory.schedules.binomial import split

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint(Schedule):
    """Keep `snapshots` states at a time, placed so that the fewest steps are run again.

        R = t(J, S) - (J - 1),   t = r·J - C(S+r, S+1),   r minimal with C(S+r, S) >= J

    A kept state is itself what the sweep of its step starts from. The last steps keep their graphs until
    they are swept at once.

    Args:
        snapshots: S, states kept in memory at a time, theta_0's among them; at least 1.
        disk: a directory for more states; they are written when they are far from their use,
            and removed when they are no longer needed. For tensors on a GPU, one that lives in
            memory (/dev/shm on Linux) makes the machine's memory the second tier.
        disk_snapshots: how many; by default enough that no step is replayed.
        graphs: c, the most graphs kept at a time. With more than 1, c steps are swept
            after one run, and only every c-th state needs a slot.
        gradients: also keep G_j of every step, so that a replay costs the optimizer's
            work only.

    Raises:
        ArgumentError: a number below 1, or `disk_snapshots` without `disk`.

    Cost: time 12F a step and 3F for each of R replays; memory S times (theta, s), c graphs, and J times
    theta if `gradients`.
    Source: Griewank and Walther 2000, Algorithm 799.

    >>> import gimli_core as gimli
    >>> actions = list(gimli.memory.Checkpoint(snapshots=5).actions(100))
    >>> sum(type(a).__name__ == "Advance" for a in actions) - 100   # replayed steps
    217
    """

    snapshots: int
    disk: Path | None = None
    disk_snapshots: int | None = field(default=None, kw_only=True)
    graphs: int = field(default=1, kw_only=True)
    gradients: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_switch("Checkpoint(gradients=…)", self.gradients)
        for name, least in (("snapshots", 1), ("graphs", 1), ("disk_snapshots", 0)):
            value = getattr(self, name)
            if value is None and name == "disk_snapshots":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise unexpected(
                    f"Checkpoint({name}=…)",
                    f"a whole number, at least {least}",
                    repr(value),
                    "One snapshot is theta_0's; the more there are, the fewer steps are replayed.",
                )
        if self.disk is not None:
            object.__setattr__(self, "disk", directory_of("Checkpoint(disk=…)", self.disk))
        elif self.disk_snapshots:
            raise unexpected(
                "Checkpoint(disk_snapshots=…)",
                "disk=PATH beside it",
                "no disk",
                "Name a directory that may be written to.",
            )

    def actions(self, steps: int) -> Iterator[Action]:
        """How it advances. Steps [0, end) are still to be swept, and the working point stands at the last stored one.

        While more than a block of steps lies between it and `end` and a slot is free, it walks on to where the binomial
        formula puts the next stored point. From there the block's steps run with their graphs and are swept at once;
        the last of them is swept from its point, but in the first run, where L_val comes between. Then `end` is where
        the block began, and the walk starts again from the stored point before it.
        """
        on_disk = 0
        if self.disk is not None:
            on_disk = max(0, steps - self.snapshots) if self.disk_snapshots is None else self.disk_snapshots
        slots, block = self.snapshots + on_disk, self.graphs
        if steps == 0:
            yield Validate(0)
            return
        yield Store(0)
        # A stack: its bottom is needed last, and goes to disk, but for theta_0, which the caller holds anyway.
        stored = [0]
        point, end = 0, steps  # the working point, and the steps still to be swept
        while end > 0:
            first_run = end == steps
            free = slots - len(stored) + 1  # slots for the states of [point, end)
            while end - point > block and free > 0:
                stop = point + split(end - point, free, block)
                for j in range(point, stop):
                    yield Advance(j, Keep.GRADIENT if self.gradients and first_run else Keep.NOTHING)
                point, free = stop, free - 1
                if free and end - point > block:
                    yield Store(point, Tier.DISK if len(stored) <= on_disk else Tier.MEMORY)
                    stored.append(point)
            if point == stored[-1]:
                yield Drop(stored.pop())
            for j in range(point, end if first_run else end - 1):
                yield Advance(j, Keep.GRAPH)
            if first_run:
                yield Validate(steps)
            for j in reversed(range(point, end)):
                yield Sweep(j)
            end = point
            if end > 0:
                point = stored[-1]
                yield Restore(point)
