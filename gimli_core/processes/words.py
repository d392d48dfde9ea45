"""What ranks tell each other by the store of their process group when a collective can no longer be used.

A rank that raises leaves a word; one that is left without an answer reads the others' words, and leaves one too, so
that those without a word are known to have died or to hang.
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from typing import Any

from torch import distributed

from gimli_core.processes.mesh import Ranks

__all__ = ["begin", "leave", "others"]

SECONDS = 3.0  # that the others are waited for: they notice within moments of each other
_ROUNDS: Counter[str] = Counter()  # by group: words of an earlier run are none of this one


def begin(ranks: Ranks) -> None:
    """A run of these ranks begins."""
    _ROUNDS[ranks.group.group_name] += 1


def leave(ranks: Ranks, word: str) -> None:
    """Say what happened here. The first word stays; a store that is gone takes none."""
    store = _store()
    if store is not None:
        try:
            if not store.check([_key(ranks, ranks.rank)]):
                store.set(_key(ranks, ranks.rank), word)
        except (RuntimeError, OSError):
            return


def others(ranks: Ranks) -> str:
    """What the other ranks say, as far as they say something."""
    store, end = _store(), time.monotonic() + SECONDS
    told = []
    for rank in range(ranks.size):
        if rank == ranks.rank:
            continue
        try:
            if store is None:
                raise RuntimeError
            left = timedelta(seconds=max(0.05, end - time.monotonic()))
            store.wait([_key(ranks, rank)], left)
            told.append(f"rank {rank} {store.get(_key(ranks, rank)).decode(errors='replace')}")
        except (RuntimeError, OSError):
            told.append(f"rank {rank} says nothing: it has died, or hangs")
    return "; ".join(told)


def _key(ranks: Ranks, rank: int) -> str:
    name = ranks.group.group_name
    return f"gimli_core/{name}/{_ROUNDS[name]}/{rank}"


def _store() -> Any:
    try:
        return distributed.distributed_c10d._get_default_store()
    except (RuntimeError, ValueError):
        return None
