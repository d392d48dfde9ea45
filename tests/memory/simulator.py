"""A machine that runs a schedule's actions without tensors, and refuses every illegal one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gimli_core.memory.schedules.actions import Advance, Drop, Keep, Restore, Store, Sweep, Tier, Validate


@dataclass
class Machine:
    """What is held, and how much of each kind was held at once."""

    steps: int
    point: int | None = 0
    stored: dict[int, Tier] = field(default_factory=dict)
    graphs: set[int] = field(default_factory=set)
    gradients: set[int] = field(default_factory=set)
    reached: int = 0  # steps below it have been run
    swept: int | None = None  # the last step that was swept
    validated: bool = False
    replays: int = 0
    losses: int = 0  # evaluations of an inner loss with its gradient
    most: dict[object, int] = field(default_factory=dict)

    def run(self, actions: Iterable[object]) -> Machine:
        for action in actions:
            getattr(self, type(action).__name__.lower())(action)
            held = {Tier.MEMORY: 0, Tier.DISK: 0, Keep.GRAPH: len(self.graphs), Keep.GRADIENT: len(self.gradients)}
            for tier in self.stored.values():
                held[tier] += 1
            self.most = {kind: max(n, self.most.get(kind, 0)) for kind, n in held.items()}
        assert self.validated
        assert self.swept == (0 if self.steps else None), "every step is swept"
        assert not self.stored, "nothing stays stored"
        assert not self.graphs, "no graph stays"
        assert not self.gradients, "no gradient stays"
        return self

    def advance(self, action: Advance) -> None:
        assert self.point == action.j < self.steps
        assert action.j <= self.reached
        assert action.j not in self.graphs, "a step whose graph is kept is not run again"
        assert self.swept is None or action.j < self.swept, "a swept step is not run again"
        self.replays += action.j < self.reached
        self.losses += action.j not in self.gradients
        self.reached = max(self.reached, action.j + 1)
        if action.keep is Keep.GRAPH:
            self.graphs.add(action.j)
        if action.keep is Keep.GRADIENT:
            self.gradients.add(action.j)
        self.point = action.j + 1

    def store(self, action: Store) -> None:
        assert self.point == action.j
        assert action.j not in self.stored
        self.stored[action.j] = action.tier

    def restore(self, action: Restore) -> None:
        assert action.j in self.stored
        self.point = action.j

    def drop(self, action: Drop) -> None:
        del self.stored[action.j]

    def validate(self, action: Validate) -> None:
        assert self.point == action.j == self.steps
        assert not self.validated
        self.validated = True

    def sweep(self, action: Sweep) -> None:
        assert self.validated
        assert action.j == (self.steps if self.swept is None else self.swept) - 1, "sweeps go down by one"
        if action.j not in self.graphs:
            assert self.point == action.j
            self.losses += 1
        self.graphs.discard(action.j)
        self.gradients.discard(action.j)
        self.swept = action.j
