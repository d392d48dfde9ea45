"""Random numbers by place: what is drawn there depends on the seed and the place alone, not on what came before."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch

from gimli_core.environment import Environment
from gimli_core.errors import unexpected
from gimli_core.runs.plain_values import plain_snapshot, snapshot_of

__all__ = [
    "EVALUATION",
    "NOISE",
    "STEP",
    "TASK",
    "check_seed",
    "generator_at",
    "generators",
    "leaving",
    "put_back",
    "seed_at",
]

TASK, STEP, EVALUATION, NOISE = range(4)  # what a place is the place of


def generator_at(seed: int, *place: int) -> torch.Generator:
    """A generator of random numbers for one place.

    >>> a, b = generator_at(0, TASK, 3), generator_at(0, TASK, 4)
    >>> torch.rand(1, generator=a) == torch.rand(1, generator=b)
    tensor([False])
    """
    return torch.Generator().manual_seed(_number(seed, place))


def seed_at(seed: int, *place: int) -> None:
    """Set the global generators of torch, NumPy and Python as belongs to one place."""
    number = _number(seed, place)
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - the user's losses may draw from it
    random.seed(number)


def check_seed(seed: Any) -> None:
    """Raise ArgumentError unless `seed` is a whole number."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise unexpected("seed", "a whole number, at least 0", repr(seed), "For example seed=0.")


def generators(device: torch.device) -> str:
    """The state of the global generators, as JSON."""
    return json.dumps(plain_snapshot(Environment([], device).capture())[1])


def put_back(states: str, device: torch.device) -> None:
    """Put the global generators back to a state that `generators` described."""
    environment = Environment([], device)
    environment.restore(snapshot_of({}, json.loads(states), environment))


@contextmanager
def leaving(device: torch.device) -> Iterator[None]:
    """What is drawn in here leaves the global generators as they were."""
    environment = Environment([], device)
    before = environment.capture()
    try:
        yield
    finally:
        environment.restore(before)


def _number(seed: int, place: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=place).generate_state(1, np.uint64)[0] >> np.uint64(1))
