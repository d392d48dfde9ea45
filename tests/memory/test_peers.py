"""Replay counts against two other programs; skipped where they are not installed."""

from __future__ import annotations

import pytest

from gimli_core.memory import Checkpoint
from gimli_core.memory.schedules.binomial import advances
from tests.memory.simulator import Machine

SIZES = [(10, 2), (20, 3), (64, 4), (100, 5), (100, 10), (100, 20), (250, 7), (1000, 10)]


@pytest.mark.parametrize(("J", "S"), SIZES)
def test_revolve_of_checkpoint_schedules(J, S):
    peer = pytest.importorskip("checkpoint_schedules")
    forwards = 0
    for action in peer.Revolve(J, S):
        if isinstance(action, peer.Forward):
            forwards += action.n1 - action.n0
        if isinstance(action, peer.EndReverse):
            break
    # There every step is run once more to record what its adjoint needs; here its state is what the sweep needs.
    assert forwards - J == advances(J, S) == Machine(J).run(Checkpoint(S).actions(J)).replays + J - 1


@pytest.mark.parametrize(("J", "S"), SIZES)
def test_pyrevolve(J, S):
    peer = pytest.importorskip("pyrevolve.crevolve")
    machine, forwards = peer.CRevolve(S, J), 0
    while (action := machine.revolve()) is not peer.Action.terminate:
        if action is peer.Action.advance:
            forwards += machine.capo - machine.oldcapo
    assert forwards == advances(J, S)
