"""The first wrong quantity: the engine's own events, held against the plain unroll's totals as they happen.

Forward quantities come in the order in which they run, then those of the sweep, from step J-1 down: the first
that differs is where the fault is, since everything that it was computed from agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gimli_core.record import Event
from gimli_core.runs.run import Run
from gimli_core.verification.oracles.autograd_through_the_graph import Totals
from gimli_core.verification.question import Key, flatten

__all__ = ["Finding", "first_disagreement"]

# What each line of Algorithm 1 writes: symbol in the event, and how far its index is ahead of the step's.
WRITES = {
    5: {"G": 0},
    6: {"theta": 1, "s": 1},
    8: {"loss": 0, "A_loss": 0},
    9: {"B": 0},
    11: {"V": 0},
    12: {"A_opt": 0},
    13: {"A_loss": 0},
    14: {"B": 0, "S": 0},
}


class Finding(NamedTuple):
    """A quantity of one line that disagrees with autograd's."""

    line: int
    step: int | None  # None where the fault is in no single step
    quantity: str
    error: float  # relative

    def __str__(self) -> str:
        step = "" if self.step is None else f" of step {self.step}"
        return f"{self.quantity} (line {self.line}{step}, relative error {self.error:.1e})"


def first_disagreement(
    run: Run, totals: Totals, allowed: Callable[[Key], float], row: int | None = None
) -> Finding | None:
    """Run `run` and return the first quantity that is off by more than `allowed` (absolute), or None.

    Of several outer losses those of `row` are looked at.
    """
    truth = {**totals.forward, **totals.backward}
    for event in _events(run):
        if row is not None and event.rows > 1 and event.row != row:
            continue
        for key, value in _quantities(event, row):
            if key not in truth:
                continue
            expected = truth[key]
            difference = (value.to(expected) - expected).abs().max().item() if value.numel() else 0.0
            if not difference <= allowed(key) and bool(torch.isfinite(expected).all()):
                size = expected.abs().max().item()
                return Finding(event.line, event.j, _describe(key, event), difference / size if size else float("inf"))
    return None


def _events(run: Run) -> Iterator[Event]:
    yield from run.forward()
    yield from run.backward()


def _quantities(event: Event, row: int | None) -> Iterator[tuple[Key, Tensor]]:
    for symbol, ahead in WRITES.get(event.line, {}).items():
        if symbol in event.values:
            name = "B with L" if event.line == 9 and symbol == "B" else symbol
            value = event.values[symbol]
            if symbol == "loss" and row is not None:
                value = value[row]
            yield from flatten(value, (name, event.j + ahead)).items()


def _describe(key: Key, event: Event) -> str:
    """The quantity in words: `S_2[momentum_buffer] of w: the S pullback at step 2`."""
    symbol, j, *path = key
    again = f" when step {event.j} is replayed" if event.replay and event.line in (5, 6) else ""
    match symbol:
        case "loss":
            return "L, the validation loss"
        case "G" | "theta" | "V":
            return f"{symbol}_{j} of {path[0]}{again}"
        case "B with L":
            return f"B_{j} of {path[0]}"
        case "B":
            return f"B_{j} of {path[0]}: the B pullback at step {j}"
        case "s":
            return f"s_{j}[{path[0]}] of {path[1]}{again}"
        case "S":
            return f"S_{j}[{path[0]}] of {path[1]}: the S pullback at step {j}"
        case "A_opt":
            return f"A_opt increment of {path[1]} at step {j}, for {path[0]}"
        case _:
            return (
                f"A_loss, explicit part of {path[0]}"
                if event.line == 8
                else f"A_loss increment of {path[0]} at step {j}"
            )
