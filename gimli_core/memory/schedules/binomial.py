"""How often steps must be run again when only S states fit: the arithmetic of optimal checkpointing.

A sweep over n steps from a stored state, with S slots for states (the start's own included) and room
for the graphs of c steps at a time, runs each block of c steps forwards k times before it is swept; of
the blocks of an optimal order, at most C(S-1+k, k) need exactly k, so

    capacity(S, r) = C(S + r, S)                                  blocks with k <= r
    advances(n, S, c) = Σ_k k · min(what is left, c · C(S-1+k, k))

which for c = 1 is the closed form r·n - C(S+r, S+1), r minimal with C(S+r, S) >= n.

Source: Griewank and Walther 2000, "Algorithm 799: revolve", with a block of steps in place of a step.
"""

from __future__ import annotations

from math import comb

__all__ = ["advances", "capacity", "repetitions", "split"]


def capacity(slots: int, repeats: int) -> int:
    """How many blocks can be swept when none is run forwards more than `repeats` times."""
    return comb(slots + repeats, slots) if repeats >= 0 else 0


def repetitions(n: int, slots: int, block: int = 1) -> int:
    """The least r with c · C(S + r, S) >= n: how often the most repeated step is run forwards."""
    r = 0
    while block * capacity(slots, r) < n:
        r += 1
    return r


def advances(n: int, slots: int, block: int = 1) -> int:
    """The fewest runs of a step without a graph that a sweep over n steps takes, the first run of each included.

    >>> advances(100, 5) - 99      # replays, beyond the first 99
    217
    """
    total, left, k = 0, n, 0
    while left > 0:
        served = min(left, block * comb(slots - 1 + k, k))
        total, left, k = total + k * served, left - served, k + 1
    return total


def split(n: int, slots: int, block: int = 1) -> int:
    """How far to run from the start before the next state is kept, in an optimal order; n > c.

    Both parts must fill every place with fewer repetitions, and neither may exceed r of its own:
    c·C(S+r-2, S) <= m <= c·C(S+r-1, S), and c·C(S+r-2, S-1) <= n - m <= c·C(S+r-1, S-1).
    The largest such m is taken.
    """
    r = repetitions(n, slots, block)
    return min(block * capacity(slots, r - 1), n - block * capacity(slots - 1, r - 1))
