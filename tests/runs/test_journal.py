"""A run that is killed goes on where it was, to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

import gimli_core as gimli
import gimli_core.runs.journal as resume_module
from gimli_core.errors import ArgumentError, StorageError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, StoreStates
from gimli_core.runs.journal import Journal
from tests.compare import assert_identical
from tests.problems import replayed

SCHEDULES = {
    "graphs": RetainGraphs(),
    "states": StoreStates(),
    "2": Checkpoint(2),
    "3 graphs 2": Checkpoint(3, graphs=2),
    "2 gradients": Checkpoint(2, gradients=True),
    "budget": Budget("1GB"),
}


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weights", [None, [0.5] * 10])
def test_after_every_writing(schedule, weights, tmp_path, monkeypatch):
    """The run is stopped right after each of its writings in turn, forwards and backwards."""
    expected = replayed(RetainGraphs(), val_weights=weights)
    monkeypatch.setattr(resume_module, "SECONDS", 0.0)
    write = Journal.write

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        raise Killed

    monkeypatch.setattr(Journal, "write", write_and_stop)
    for _ in range(200):
        try:
            found = replayed(SCHEDULES[schedule], val_weights=weights, resume=tmp_path / "run")
        except Killed:
            continue
        assert_identical(found, expected)
        assert not (tmp_path / "run").exists()
        return
    pytest.fail("the run never ended")


def test_unroll_goes_on_in_either_direction(tmp_path, monkeypatch):
    def loss(theta, phi, target):
        return ((theta["w"] - target) ** 2).sum() / 2 + 0.1 * (theta["w"] ** 4).sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.Adam())
    arguments = problem, {"w": torch.zeros(2)}, [torch.ones(2)] * 6, torch.ones(2)
    expected = gimli.meta_gradient(*arguments, phi_opt={"lr": 0.1})
    monkeypatch.setattr(resume_module, "SECONDS", 0.0)
    write, stopped = Journal.write, []

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        raise Killed

    monkeypatch.setattr(Journal, "write", write_and_stop)
    for _ in range(100):
        lr = torch.tensor(0.1, requires_grad=True)
        part = "forwards"
        try:
            made = gimli.unroll(*arguments, phi_opt={"lr": lr}, memory=Checkpoint(2), resume=tmp_path / "run")
            part = "backwards"
            made.backward()
        except Killed:
            stopped.append(part)
            continue
        break
    assert {"forwards", "backwards"} <= set(stopped)
    assert torch.equal(made.detach(), expected.val_loss)
    assert torch.equal(lr.grad, expected.A_opt["lr"].to(lr))
    assert not (tmp_path / "run").exists()


PROGRAM = """
import sys, torch, gimli_core.runs.journal
from gimli_core.memory import Checkpoint
from tests.problems import replayed
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
gimli_core.runs.journal.SECONDS = 0.0
print("ready", flush=True)
torch.save(replayed(Checkpoint(3), steps=120, resume=sys.argv[1]), sys.argv[2])
"""


@pytest.mark.long
def test_kill_9_at_random_moments(tmp_path):
    expected = replayed(RetainGraphs(), steps=120)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), str(tmp_path / "result")]
    delays, kills = iter(torch.rand(100).mul(1.2).tolist()), 0
    while not (tmp_path / "result").exists():
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        try:
            process.wait(timeout=next(delays) if kills < 5 else None)
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        process.stdout.close()
    assert kills > 0
    assert_identical(torch.load(tmp_path / "result", weights_only=True), expected)


def stop_after_one(monkeypatch, directory):
    monkeypatch.setattr(resume_module, "SECONDS", 0.0)
    write = Journal.write

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write_and_stop)
        with pytest.raises(Killed):
            replayed(Checkpoint(2), resume=directory)


def test_another_problem(tmp_path, monkeypatch):
    stop_after_one(monkeypatch, tmp_path)
    with pytest.raises(ArgumentError, match="another problem"):
        replayed(Checkpoint(2), gimli.optimizers.SGD(), resume=tmp_path)


def test_a_damaged_progress_file(tmp_path, monkeypatch):
    stop_after_one(monkeypatch, tmp_path)
    whole = (tmp_path / "progress").read_bytes()
    (tmp_path / "progress").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="as it was written"):
        replayed(Checkpoint(2), resume=tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="a directory that can be written to"):
        replayed(Checkpoint(2), resume=tmp_path / "file")
