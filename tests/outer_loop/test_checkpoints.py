"""A run that is killed at any moment goes on to the same bits; files of anything else are refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys

import pytest
import torch

import gimli_core as gimli
import gimli_core.memory.directory as directory_module
import gimli_core.memory.files as files_module
from gimli_core.errors import ArgumentError, StorageError
from gimli_core.outer_loop.checkpoints import Checkpoints
from gimli_core.outer_loop.identity import apart
from gimli_core.outer_loop.log import Log
from gimli_core.outer_loop.run_files import RunFiles
from tests.killing import killed_until_done
from tests.outer_loop.problems import end_of, learned_rate, leaves, outer_loop, problem, same, sampler


class Killed(BaseException):
    """Stands for a signal."""


def begun(directory, seed=7, **changed):
    """A process begins: the random numbers are where it puts them, then the loop is made."""
    torch.manual_seed(seed)
    return outer_loop(out=directory, **{"checkpoint_every": 0.0, "tensorboard": False, **changed})


@pytest.fixture(scope="module")
def expected():
    torch.manual_seed(7)
    return end_of(outer_loop())


def stop_at(monkeypatch, owner, name, call, after):
    """Kill when a function is called for the `call`-th time, before or after its work."""
    original, calls = getattr(owner, name), [0]

    def stopping(*arguments, **options):
        calls[0] += 1
        if calls[0] == call and not after:
            raise Killed
        returned = original(*arguments, **options)
        if calls[0] == call:
            raise Killed
        return returned

    monkeypatch.setattr(owner, name, stopping)


PLACES = [
    (torch.optim.Adam, "step"),
    (torch.optim.lr_scheduler.CosineAnnealingLR, "step"),
    (Log, "append"),
    (Checkpoints, "write"),
    (RunFiles, "note"),
    (files_module.os, "replace"),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "seconds"),
    [*((*place, 0.0) for place in PLACES), (Log, "append", 1e9)],
    ids=lambda value: str(value) if isinstance(value, (str, float)) else "",
)
def test_killed_at_every_place(owner, name, seconds, after, tmp_path, monkeypatch, expected):
    """In the first call, then in the third of the next start: whatever is on the disk then is enough to go on."""
    for call in (1, 3):
        with monkeypatch.context() as patch:
            stop_at(patch, owner, name, call, after)
            with pytest.raises(Killed):
                begun(tmp_path / "run", checkpoint_every=seconds).run()
    assert same(end_of(begun(tmp_path / "run")), expected)


@pytest.mark.parametrize(("owner", "name"), [(directory_module, "create"), (files_module.os, "replace")])
def test_a_kill_leaves_nothing_that_the_next_start_does_not_clear(owner, name, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, owner, name, 1, after=owner is directory_module)
        patch.setattr(files_module.Path, "unlink", lambda *_, **__: None)  # who is killed clears nothing up
        with pytest.raises(Killed):
            begun(tmp_path / "run").run()
    assert len(list((tmp_path / "run").iterdir())) == 1 + (owner is not directory_module)
    begun(tmp_path / "run").run()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint", "log.jsonl"]


def test_a_run_with_files_is_what_it_is_without(tmp_path, expected):
    assert same(end_of(begun(tmp_path / "run")), expected)
    assert same(end_of(begun(tmp_path / "run")), expected)  # a run that has ended is what it was
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    assert records == expected["records"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals to forked children need POSIX")
@pytest.mark.parametrize(
    ("kills", "seconds"), [(4, 0.0), (3, 0.02), *(pytest.param(40, s, marks=pytest.mark.long) for s in (0.0, 0.03))]
)
def test_kill_9_at_random_moments(kills, seconds, tmp_path, expected):
    def work():
        found = end_of(begun(tmp_path / "run", checkpoint_every=seconds))
        torch.save(found, tmp_path / "unfinished")
        os.replace(tmp_path / "unfinished", tmp_path / "result")

    delays = sorted(torch.rand(kills).mul(0.12).tolist())  # the first hits on a quick machine too
    assert killed_until_done(work, tmp_path / "result", delays)
    found = torch.load(tmp_path / "result", weights_only=True)
    assert same(found, expected)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint", "log.jsonl"]


def test_more_steps_go_on_from_the_last_one(tmp_path):
    torch.manual_seed(7)
    expected = end_of(outer_loop(steps=9, evaluate_every=3))
    begun(tmp_path / "run", steps=6, evaluate_every=3).run()
    assert same(end_of(begun(tmp_path / "run", steps=9, evaluate_every=3)), expected)


def test_a_loop_that_is_left_goes_on(tmp_path, expected):
    for record in begun(tmp_path / "run", checkpoint_every=1e9):
        if record["step"] == 5:
            break
    loop = begun(tmp_path / "run")
    steps = iter(loop)
    assert next(steps)["step"] == 6
    steps.close()
    assert same(end_of(begun(tmp_path / "run")), expected)


def test_an_error_in_a_step_loses_nothing(tmp_path, expected):
    def broken(step):
        if step == 4:
            raise ValueError("the data is gone")
        return sampler()(step)

    loop = begun(tmp_path / "run")
    loop._draw = broken
    with pytest.raises(ValueError, match="gone"):
        loop.run()
    assert same(end_of(begun(tmp_path / "run")), expected)


def other_scheduler(directory):
    phi = leaves()
    meta_optimizer = torch.optim.Adam(phi.values(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(meta_optimizer, 20)
    estimator = gimli.Unrolled(problem(), phi, learned_rate)
    return gimli.OuterLoop(estimator, sampler(), meta_optimizer, steps=12, scheduler=scheduler, out=directory)


def larger_phi():
    return {**leaves(), "w": torch.zeros(3, dtype=torch.float64, requires_grad=True)}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda out: begun(out, lr=0.1), r"param_groups\.0\.lr is 0\.05 where this one's is 0\.1"),
        (lambda out: begun(out, seed=7, clip=2.0), "clip is 1.0 where"),
        (lambda out: begun(out, phi=larger_phi()), r"phi\.w\.0\.0 is 2 where this one's is 3"),
        (lambda out: begun(out, phi={**leaves(), "more": torch.ones(1, requires_grad=True)}), "another one"),
        (lambda out: begun(out, early_stopping=None), "early_stopping is"),
        (other_scheduler, "estimator is|scheduler"),
    ],
)
def test_a_checkpoint_of_another_loop_is_refused(make, match, tmp_path):
    begun(tmp_path / "run", steps=3).run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    phi_before = make(None).phi
    with pytest.raises(ArgumentError, match=match):
        make(tmp_path / "run").run()
    assert {path: path.read_bytes() for path in before} == before
    loop = make(tmp_path / "run")
    with pytest.raises(ArgumentError):
        loop.run()
    assert all(torch.equal(leaf, phi_before[name]) for name, leaf in loop.phi.items())


@pytest.mark.parametrize("inner_optimizer", ["sgd", "adam"])
def test_a_checkpoint_of_another_estimator_is_refused(inner_optimizer, tmp_path):
    begun(tmp_path / "run", steps=2).run()
    phi = leaves()
    rule = gimli.optimizers.SGD(lr=0.1) if inner_optimizer == "sgd" else gimli.optimizers.Adam(lr=0.2)
    estimator = gimli.Unrolled(problem(rule), phi, learned_rate)
    with pytest.raises(ArgumentError, match="estimator is"):
        begun(tmp_path / "run", phi=phi, estimator=estimator).run()


def test_of_long_texts_what_differs_is_told():
    """Though they begin alike, and however long they are."""
    layers = [f"({i}): Linear(in_features={i}, out_features=7)" for i in range(200)]
    old, new = ("\n ".join([*layers, f"seed {seed}", *layers]) for seed in (3, 4))
    assert apart(old, new) == ("'seed 3'", "'seed 4'")
    old, new = apart(", ".join([*layers, "Adam(lr=0.1)", *layers]), ", ".join([*layers, "Adam(lr=0.2)", *layers]))
    assert old.startswith("'… ")
    assert len(old) < 250
    assert old.replace("lr=0.1", "lr=0.2") == new != old
    assert apart([1.0] * 1000, [1.0] * 999 + [2.0])[1].endswith(" 2.0]")
    assert apart(None, {"kind": "StepLR"}) == ("None", "{'kind': 'StepLR'}")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [3, 40, -1, -2000])
def test_a_damaged_checkpoint_is_never_taken_up(at, tmp_path):
    begun(tmp_path / "run", steps=2).run()
    flip(tmp_path / "run" / "checkpoint", at)
    loop = begun(tmp_path / "run")
    with pytest.raises(StorageError, match="checkpoint: expected the file as it was written"):
        loop.run()
    assert all(torch.equal(leaf, leaves()[name]) for name, leaf in loop.phi.items())


def test_a_log_that_was_cut_is_an_error(tmp_path):
    begun(tmp_path / "run", steps=2).run()
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_bytes()
    for content in (whole[:-5], b"", b"{" * len(whole), whole[:-1] + b" "):
        log.write_bytes(content)
        loop = begun(tmp_path / "run")
        with pytest.raises(StorageError, match=r"log\.jsonl: expected the log as it was written"):
            loop.run()
        assert log.read_bytes() == content
        assert loop.step == 0
    log.write_bytes(whole)
    begun(tmp_path / "run", steps=2).run()


def test_lines_behind_the_checkpoint_are_cut_off(tmp_path, expected):
    begun(tmp_path / "run", steps=2, evaluate_every=2).run()
    with (tmp_path / "run" / "log.jsonl").open("ab") as log:
        log.write(b'{"step": 3, "half a li')
    assert same(end_of(begun(tmp_path / "run")), expected)


def test_another_log_is_not_touched(tmp_path):
    (tmp_path / "log.jsonl").write_text("mine\n")
    with pytest.raises(ArgumentError, match=r"a directory without another log; got .*log\.jsonl"):
        begun(tmp_path).run()
    assert (tmp_path / "log.jsonl").read_text() == "mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_another_file_named_checkpoint_is_not_touched(tmp_path):
    (tmp_path / "checkpoint").write_text("mine\n")
    with pytest.raises(StorageError, match="another kind of file"):
        begun(tmp_path).run()
    assert (tmp_path / "checkpoint").read_text() == "mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_directory_serves_one_run_at_a_time(tmp_path):
    first = iter(begun(tmp_path / "run"))
    next(first)
    with pytest.raises(ArgumentError, match="another run is using"):
        begun(tmp_path / "run").run()
    first.close()
    begun(tmp_path / "run").run()


@pytest.mark.parametrize("out", ["a\0b", "file/run"])
def test_a_directory_that_cannot_be_is_refused(out, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="out: expected"):
        begun(tmp_path / out).run()


def full(monkeypatch, what):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files_module.os, what, refuse)


@pytest.mark.parametrize("what", ["replace", "fsync"])
def test_a_full_disk_leaves_the_last_checkpoint(what, tmp_path, monkeypatch, expected):
    steps = iter(begun(tmp_path / "run"))
    for _ in range(3):
        next(steps)
    with monkeypatch.context() as patch:
        full(patch, what)
        with pytest.raises(StorageError, match="No space left"):
            next(steps)
    assert same(end_of(begun(tmp_path / "run")), expected)


def test_a_log_without_room_has_no_half_line(tmp_path, expected, monkeypatch):
    loop = begun(tmp_path / "run")
    steps = iter(loop)
    for _ in range(3):
        next(steps)
    lines = (tmp_path / "run" / "log.jsonl").read_bytes()
    original = Log.append

    def append(self, record):
        self._file, real = Short(self._file), self._file
        try:
            original(self, record)
        finally:
            self._file = real

    with monkeypatch.context() as patch:
        patch.setattr(Log, "append", append)
        with pytest.raises(StorageError, match="room for one more line"):
            next(steps)
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == lines
    assert same(end_of(begun(tmp_path / "run")), expected)


class Short:
    """A file on a disk with room for ten bytes."""

    def __init__(self, file):
        self.file = file

    def write(self, line):
        return self.file.write(line[:10])

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_small_volume(tmp_path, expected):
    """It fills up on the way; with more room the run goes on to the same bits."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        steps = iter(begun(tmp_path / "run"))
        next(steps)
        with contextlib.suppress(OSError), (tmp_path / "in the way").open("wb", buffering=0) as other:
            while other.write(b"\1" * 4096):
                pass
        with pytest.raises(StorageError, match="No space left on device"):
            list(steps)
        assert not any("gimli" in path.name for path in (tmp_path / "run").iterdir())
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path)], check=True)
        assert same(end_of(begun(tmp_path / "run")), expected)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


class Strange:
    """A scheduler whose state no file can hold without code."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        raise AssertionError("nothing runs")

    def state_dict(self):
        return {"self": self}

    load_state_dict = step


def test_a_state_that_cannot_be_read_again_is_refused_before_any_work(tmp_path):
    phi = leaves()
    meta_optimizer = torch.optim.SGD(phi.values(), lr=0.1)
    estimator = gimli.Unrolled(problem(), phi, learned_rate)
    loop = gimli.OuterLoop(
        estimator, sampler(), meta_optimizer, steps=2, scheduler=Strange(meta_optimizer), out=tmp_path / "run"
    )
    with pytest.raises(ArgumentError, match="scheduler: expected a state_dict"):
        loop.run()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.ConstantLR(o, 0.1), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            milestones=[2],
        ),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    ],
)
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_every_scheduler_and_optimizer_goes_on(scheduler, optimizer, tmp_path):
    def run(steps, out):
        torch.manual_seed(7)
        phi = leaves()
        meta_optimizer = optimizer(phi.values(), lr=0.05)
        estimator = gimli.Unrolled(problem(), phi, learned_rate)
        gimli.OuterLoop(
            estimator, sampler(), meta_optimizer, steps=steps, scheduler=scheduler(meta_optimizer), out=out
        ).run()
        return phi

    expected = run(6, None)
    run(3, tmp_path / "run")
    for name, leaf in run(6, tmp_path / "run").items():
        assert torch.equal(leaf, expected[name])


@pytest.mark.long
def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    code = """
import torch
from pathlib import Path
from tests.outer_loop.problems import outer_loop
torch.set_default_dtype(torch.float64)
outer_loop(steps=2, out=Path("run")).run()
outer_loop(steps=4, out=Path("run")).run()
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator("run/tensorboard")
board.Reload()
print(sorted(board.Tags()["scalars"]), [event.step for event in board.Scalars("val_loss")])
"""
    root = os.path.dirname(os.path.dirname(gimli.__file__))
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'evaluation/distance'" in done.stdout
    assert done.stdout.strip().endswith("[1, 2, 3, 4]")


def test_the_picture_is_of_the_log(tmp_path):
    loop = begun(tmp_path / "run", steps=4)
    loop.run()
    loop.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
