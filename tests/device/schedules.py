"""Every memory schedule gives the first one's bits: dropout, batch normalisation, losses along the way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from gimli_core.memory import Checkpoint
from tests.compare import identical
from tests.device.check import Check, Where, deterministic
from tests.problems import REPLAYED_STEPS, SCHEDULES, replayed

SHARED = Path("/dev/shm")  # in memory: the second tier of a device's


def second_tier() -> Path:
    """A directory in memory where the system has one, else any."""
    return SHARED if SHARED.is_dir() else Path(tempfile.gettempdir())


def checks(where: Where) -> Iterator[Check]:
    more = [Checkpoint(1, second_tier()), Checkpoint(2, second_tier(), disk_snapshots=2, gradients=True)]
    weights = [0.1 * j for j in range(REPLAYED_STEPS + 1)]
    with where.device, deterministic():
        expected = replayed(SCHEDULES[0], val_weights=weights)
        for schedule in (*(SCHEDULES[1:3] if where.quick else SCHEDULES[1:]), *more):
            found = replayed(schedule, val_weights=weights)
            apart = [name for name, value in expected.items() if not identical(found[name], value)]
            said = "to the bit" if not apart else f"differs in {', '.join(apart)}"
            yield Check(str(schedule), not apart, said)
