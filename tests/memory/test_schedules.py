"""Schedules without tensors: every order is legal, within its storage, and of the least length."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.memory.schedules.actions import Keep, Tier
from gimli_core.memory.schedules.binomial import advances, capacity
from tests.memory.simulator import Machine


def closed_form(J: int, S: int) -> int:
    """R = t(J,S) - (J-1) with t = r·J - C(S+r, S+1)."""
    r = 0
    while capacity(S, r) < J:
        r += 1
    return r * J - (capacity(S + 1, r - 1) if r else 0) - (J - 1)


@cache
def fewest_advances(n: int, slots: int, block: int) -> int:
    """The least number of steps run without a graph, by trying every place for the next state."""
    if n <= block:
        return 0
    if slots == 1:
        return n - block + fewest_advances(n - block, 1, block)
    return min(m + fewest_advances(n - m, slots - 1, block) + fewest_advances(m, slots, block) for m in range(1, n))


@pytest.mark.long
def test_simulator_for_all_small_sizes():
    for J in range(1, 65):
        for S in range(1, 65):
            machine = Machine(J).run(Checkpoint(S).actions(J))
            assert machine.most[Tier.MEMORY] <= S
            assert machine.most[Tier.DISK] == 0
            assert machine.most[Keep.GRAPH] == 1
            assert machine.replays == closed_form(J, S), (J, S)
            assert machine.losses == 2 * J - 1 + machine.replays


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 60), st.integers(1, 40), st.integers(0, 20), st.booleans())
def test_simulator_for_larger_sizes(J, S, graphs, on_disk, gradients):
    S = max(S, 3)  # fewer make the order itself very long
    schedule = Checkpoint(
        S, "unused" if on_disk else None, disk_snapshots=on_disk or None, graphs=graphs, gradients=gradients
    )
    machine = Machine(J).run(schedule.actions(J))
    assert machine.most[Tier.MEMORY] <= S
    assert machine.most[Tier.DISK] <= on_disk
    assert machine.most[Keep.GRAPH] <= graphs
    assert machine.most[Keep.GRADIENT] <= (J if gradients else 0)
    plain = advances(J, S + on_disk, graphs)
    kept = sum(type(a).__name__ == "Advance" and a.keep is not Keep.GRAPH for a in schedule.actions(J))
    assert kept == plain
    if graphs == 1 and not gradients:
        assert machine.replays == closed_form(J, S + on_disk)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_the_order_is_of_least_length(block):
    for J in range(1, 41):
        for S in range(1, 9):
            best = fewest_advances(J, S, block)
            assert advances(J, S, block) == best
            kept = sum(
                type(a).__name__ == "Advance" and a.keep is Keep.NOTHING for a in Checkpoint(S, graphs=block).actions(J)
            )
            assert kept == best, (J, S, block)


@pytest.mark.parametrize(
    ("J", "S", "replays"),
    [(100, 5, 217), (100, 10, 123), (100, 20, 79), (1000, 5, 5285), (1000, 10, 2637), (1000, 20, 1748)],
)
def test_counts_of_the_closed_form(J, S, replays):
    assert closed_form(J, S) == replays
    assert Machine(J).run(Checkpoint(S).actions(J)).replays == replays


def test_golden_orders():
    assert (
        order(Checkpoint(2), 4) == "store0 run0 run1 store2 run2 GRAPH3 validate sweep3 "
        "restore2 drop2 sweep2 restore0 run0 sweep1 restore0 drop0 sweep0"
    )
    assert (
        order(Checkpoint(1), 3) == "store0 run0 run1 GRAPH2 validate sweep2 restore0 run0 sweep1 restore0 drop0 sweep0"
    )
    assert (
        order(Checkpoint(1, graphs=2), 4)
        == "store0 run0 run1 GRAPH2 GRAPH3 validate sweep3 sweep2 restore0 drop0 GRAPH0 sweep1 sweep0"
    )
    assert order(Checkpoint(3), 3) == order(StoreStates(), 3)
    assert order(RetainGraphs(), 2) == "GRAPH0 GRAPH1 validate sweep1 sweep0"
    assert order(Checkpoint(2, "unused", disk_snapshots=1, graphs=1), 3) == (
        "store0 run0 disk1 run1 GRAPH2 validate sweep2 restore1 drop1 sweep1 restore0 drop0 sweep0"
    )
    assert order(Checkpoint(4), 0) == "validate"


def order(schedule, J):
    return " ".join(word(a) for a in schedule.actions(J)).replace(f"validate{J}", "validate")


def word(action):
    kind = type(action).__name__.lower()
    if kind == "advance":
        kind = {Keep.NOTHING: "run", Keep.GRADIENT: "gradient", Keep.GRAPH: "GRAPH"}[action.keep]
    if kind == "store" and action.tier is Tier.DISK:
        kind = "disk"
    return f"{kind}{action.j}"


@pytest.mark.parametrize("schedule", [RetainGraphs(), StoreStates()])
def test_the_two_extremes_are_legal(schedule):
    for J in range(20):
        machine = Machine(J).run(schedule.actions(J))
        assert machine.replays == 0
