"""A run that is killed goes on where it was, to the same bits."""

from __future__ import annotations

import os
import random

import pytest
import torch

import gimli_core as gimli
import gimli_core.runs.journal as resume_module
from gimli_core.errors import ArgumentError, StorageError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, StoreStates
from gimli_core.runs.journal import Journal
from tests.compare import assert_identical
from tests.killing import Killed, killed_until_done, stopping, until_through
from tests.problems import replayed

SCHEDULES = {
    "graphs": RetainGraphs(),
    "states": StoreStates(),
    "2": Checkpoint(2),
    "3 graphs 2": Checkpoint(3, graphs=2),
    "2 gradients": Checkpoint(2, gradients=True),
    "3 gradients graphs 2": Checkpoint(3, gradients=True, graphs=2),
    "budget": Budget("1GB"),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weights", [None, [0.5] * 10])
def test_after_every_writing(schedule, weights, tmp_path):
    """The run is stopped right after each of its writings in turn, forwards and backwards."""
    options = {"val_weights": weights, "resume": tmp_path / "run"}
    found = until_through(lambda: replayed(SCHEDULES[schedule], **options))
    assert_identical(found, replayed(RetainGraphs(), val_weights=weights))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("schedule", "weights", "every"),
    [
        ("3 gradients graphs 2", None, 2),
        ("2 gradients", [0.5] * 10, 4),
        ("graphs", None, 4),
        *(pytest.param(name, w, 1, marks=pytest.mark.long) for name in SCHEDULES for w in (None, [0.5] * 10)),
    ],
)
def test_a_stop_at_every_moment(schedule, weights, every, tmp_path, monkeypatch):
    """A run is stopped after its k-th action, written then alone, and goes on to the end: the same bits, and random
    number generators that stand where a run without a stop leaves them."""

    def run():
        found = replayed(SCHEDULES[schedule], val_weights=weights, resume=tmp_path / "run")
        assert_identical(found, expected)
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert random.getstate() == generators[1]
        assert not (tmp_path / "run").exists()

    expected = replayed(SCHEDULES[schedule], val_weights=weights)
    generators = torch.get_rng_state(), random.getstate()
    left = [0]  # actions until the run is stopped

    def due(self):
        left[0] -= 1
        return left[0] == 0

    monkeypatch.setattr(Journal, "due", due)
    for k in range(1, 200, every):
        left[0] = k
        try:
            with stopping():
                run()
        except Killed:
            run()
        else:
            assert k > 10
            return
    pytest.fail("the run never ended")


def test_unroll_goes_on_in_either_direction(tmp_path):
    def loss(theta, phi, target):
        return ((theta["w"] - target) ** 2).sum() / 2 + 0.1 * (theta["w"] ** 4).sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())
    arguments = problem, {"w": torch.zeros(2)}, [torch.ones(2)] * 6, torch.ones(2)
    expected = gimli.meta_gradient(*arguments, phi_opt={"lr": 0.1})
    stopped = []

    def attempt():
        lr = torch.tensor(0.1, requires_grad=True)
        stopped.append("forwards")
        made = gimli.unroll(*arguments, phi_opt={"lr": lr}, memory=Checkpoint(2), resume=tmp_path / "run")
        stopped[-1] = "backwards"
        made.backward()
        return made, lr

    made, lr = until_through(attempt)
    assert {"forwards", "backwards"} <= set(stopped[:-1])
    assert torch.equal(made.detach(), expected.val_loss)
    assert torch.equal(lr.grad, expected.A_opt["lr"].to(lr))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals to forked children need POSIX")
@pytest.mark.parametrize(
    ("schedule", "steps", "kills"),
    [
        (Checkpoint(3), 30, 4),
        (Checkpoint(3, gradients=True), 30, 4),
        *(pytest.param(schedule, 60, 40, marks=pytest.mark.long) for schedule in SCHEDULES.values()),
    ],
)
def test_kill_9_at_random_moments(schedule, steps, kills, tmp_path, monkeypatch):
    expected = replayed(RetainGraphs(), steps=steps)
    generators = torch.get_rng_state()
    monkeypatch.setattr(resume_module, "SECONDS", 0.0)

    def work():
        found = replayed(schedule, steps=steps, resume=tmp_path / "run")
        torch.save((found, torch.get_rng_state()), tmp_path / "unfinished")
        os.replace(tmp_path / "unfinished", tmp_path / "result")

    delays = sorted(torch.rand(kills).mul(0.5).tolist())  # the first hits on a quick machine too
    assert killed_until_done(work, tmp_path / "result", delays)
    found, left = torch.load(tmp_path / "result", weights_only=True)
    assert_identical(found, expected)
    assert torch.equal(left, generators)


def stop_after_one(directory):
    with stopping(), pytest.raises(Killed):
        replayed(Checkpoint(2), resume=directory)


def test_another_problem(tmp_path):
    stop_after_one(tmp_path)
    with pytest.raises(ArgumentError, match="another problem"):
        replayed(Checkpoint(2), gimli.optimizers.SGD(), resume=tmp_path)


def test_a_damaged_progress_file(tmp_path):
    stop_after_one(tmp_path)
    whole = (tmp_path / "progress").read_bytes()
    (tmp_path / "progress").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="as it was written"):
        replayed(Checkpoint(2), resume=tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="a directory that can be written to"):
        replayed(Checkpoint(2), resume=tmp_path / "file")
