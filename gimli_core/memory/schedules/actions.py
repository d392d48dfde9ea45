"""What a memory schedule can ask of the engine.

A schedule decides; it touches no tensor. `schedule.actions(J)` yields actions, and the engine executes
them in order on one working point, which starts at (theta_0, s_0):

    Advance(j, keep)   run step j forwards from the working point j; the working point becomes j+1.
                       keep: what stays of the step: nothing, G_j alone, or its record with the graph of G_j.
                       A step whose G_j was kept is run again from it, without the loss
    Store(j, tier)     keep a copy of the working point j, in memory or on disk
    Restore(j)         the stored point j becomes the working point
    Drop(j)            forget the stored point j
    Validate(J)        lines 8 and 9 at the working point J; once, before any sweep
    Sweep(j)           lines 11-14 of step j, from its kept record or else from the working point j

Sweeps come in the order J-1 ... 0, each once, and forget what was kept of step j.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

__all__ = ["Action", "Advance", "Drop", "Keep", "Restore", "Schedule", "Store", "Sweep", "Tier", "Validate"]


class Keep(Enum):
    """What stays of a step that is run forwards."""

    NOTHING = "nothing"
    GRADIENT = "gradient"
    GRAPH = "graph"


class Tier(Enum):
    """Where a point is stored."""

    MEMORY = "memory"
    DISK = "disk"


class Advance(NamedTuple):
    """Lines 5 and 6: from (theta_j, s_j) to (theta_{j+1}, s_{j+1})."""

    j: int
    keep: Keep = Keep.NOTHING


class Store(NamedTuple):
    """Keep the point (theta_j, s_j)."""

    j: int
    tier: Tier = Tier.MEMORY


class Restore(NamedTuple):
    """Go on from the stored point (theta_j, s_j), which stays stored."""

    j: int


class Drop(NamedTuple):
    """Let the stored point (theta_j, s_j) go."""

    j: int


class Validate(NamedTuple):
    """Lines 8 and 9, at theta_J = theta_j."""

    j: int


class Sweep(NamedTuple):
    """Lines 11 to 14 for step j, from its graph or its point."""

    j: int


Action = Advance | Store | Restore | Drop | Validate | Sweep


class Schedule(ABC):
    """How a meta-gradient spends memory and time; see the module's docstring for the actions.

    Threads: a step that is run again needs the random numbers of its first run, so a schedule that replays (all but
    `RetainGraphs`) turns the global generators of torch, NumPy and Python back for that time. Another thread that
    draws from them then draws numbers that it has had before, and moves them under the run, which ends in a
    ReplayError if the loss is random. Let other threads draw from generators of their own (`torch.Generator`,
    `numpy.random.default_rng`, `random.Random`). Runs in several threads that share a module take turns with it, one
    evaluation at a time, since `functional_call` swaps the weights of the one module; its buffers are one for all. A
    thread that calls it beside the runs takes no turns: give that one a copy.
    """

    replays: bool = True  # whether a step may be run more than once
    disk: Path | None = None  # the directory for points that are stored on disk
    compact: bool = True  # the least memory: see the notes in allocator.py

    @abstractmethod
    def actions(self, steps: int) -> Iterator[Action]:
        """The actions of a run with `steps` = J."""
