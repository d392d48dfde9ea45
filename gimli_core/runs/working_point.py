"""The point (theta_j, s_j) that a run is at, and the random numbers and buffers that its step meets."""

from __future__ import annotations

from gimli_core.environment import Environment, Snapshot
from gimli_core.record import Kept, Point

__all__ = ["WorkingPoint"]


class WorkingPoint:
    """Where a run is.

    Attributes:
        at: the point; its snapshot, if it has one, is of the environment that its step met or will meet.
        start: the environment before step 0.
        gradients: G_j by step, of which the environment was noted too, so that the step is replayed without its loss.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._last: Snapshot | None = None  # unchanged buffers are shared with it
        self.at = Point(0, {}, {}, None)
        self.start: Snapshot | None = None
        self.gradients: dict[int, Kept] = {}

    def begin(self, point: Point, start: Snapshot) -> None:
        """A run begins at `point`, in the environment `start`, of which it may know the buffers alone."""
        self.at, self.start = point, start
        self._last = start if start.generators else None

    def captured(self) -> Snapshot:
        """The environment as it is now."""
        return self._environment.capture(self._last)

    def marked(self) -> Point:
        """The point with a snapshot of the environment that its step meets."""
        if self.at.j in self.gradients:  # a replay from a kept G_j has not moved what the loss would have
            self.at = self.at._replace(snapshot=self.gradients[self.at.j].snapshot)
        elif self.at.snapshot is None:
            self._last = self.captured()
            self.at = self.at._replace(snapshot=self._last)
        return self.at

    def return_to(self, point: Point) -> None:
        """The environment of a point's step again."""
        assert point.snapshot is not None
        self._environment.restore(point.snapshot)

    def at_gradient(self, *, restore: bool) -> Kept | None:
        """What was kept of the point's step; the point then has the environment of its first run.

        A step that is run again from G_j alone leaves the environment behind; where the loss
        is needed again, the environment is restored first.
        """
        kept = self.gradients.get(self.at.j)
        if kept is not None:
            self.at = self.at._replace(snapshot=kept.snapshot)
            if restore:
                self.return_to(self.at)
        return kept
