"""`compile="auto"`: when something is compiled beside the run, when it is used, and when never."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.compiled import choice, in_time, operations
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.compiled.whole_run import CompiledWhole
from gimli_core.optimizers import SGD, Adam
from gimli_core.problem import Patience
from tests import problems
from tests.compare import agree, said
from tests.problems import tanh_network


class Forked:
    """Stands for a fork: it ends when a test says so."""

    made: list[Forked]

    def __init__(self, work: Callable[[], str], seconds: float) -> None:
        self.said: str | None = None
        self.failed = False
        self.made.append(self)

    def ended(self) -> bool:
        return self.said is not None

    def end(self, said: str, failed: bool = False) -> None:
        self.said, self.failed = said, failed


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[Forked]:
    """The forks that were made, once eager runs have taken no time at all."""
    Forked.made = []
    monkeypatch.setattr(in_time, "Beside", Forked)
    monkeypatch.setattr(in_time, "can_fork", lambda device: None)
    monkeypatch.setattr(in_time, "AUTO_SECONDS", 0.0)
    monkeypatch.setattr(in_time, "_under_way", [])
    return Forked.made


def refusing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing can be compiled; the kinds that were tried."""
    tried: list[str] = []

    def refuse(inputs: Any, name: str) -> Any:
        tried.append(name)
        raise Uncompiled("it does not suit the compiler")

    for name, (what, _) in choice.KINDS.items():
        monkeypatch.setitem(choice.KINDS, name, (what, lambda inputs, name=name: refuse(inputs, name)))
    return tried


def test_a_run_waits_for_nothing(forks: list[Forked], caplog: pytest.LogCaptureFixture) -> None:
    made = tanh_network(SGD(lr=0.1))
    eager = gimli.meta_gradient(**made, compile=False)
    for _ in range(3):
        agree(gimli.meta_gradient(**made), eager, rtol=0, atol=0)
    assert len(forks) == 1
    assert said(caplog) == "gimli_core: compiling beside the run, which goes on as it is; compile=False leaves that out"


def test_one_fork_at_a_time(forks: list[Forked]) -> None:
    for _ in range(2):
        gimli.meta_gradient(**tanh_network(SGD(lr=0.1)))
    assert len(forks) == 1
    forks[0].end("something", failed=True)
    gimli.meta_gradient(**tanh_network(SGD(lr=0.1)))
    assert len(forks) == 2


def test_a_loss_that_was_refused_is_never_tried_again(forks: list[Forked], caplog: pytest.LogCaptureFixture) -> None:
    """In whatever shapes; and one line says so."""
    made = tanh_network(SGD(lr=0.1))
    gimli.meta_gradient(**made)
    forks[0].end("it does not suit the compiler", failed=True)
    for size in (6, 6, 7, 8):
        batch = (torch.randn(size, 3), torch.randn(size))
        gimli.meta_gradient(**{**made, "train_batches": [batch] * 4, "val_batch": batch})
    gimli.meta_gradient(**{**made, "theta_0": {**made["theta_0"], "w": torch.randn(3, 2), "v": torch.randn(2)}})
    assert len(forks) == 1
    assert said(caplog).count("not compiled: it does not suit the compiler. Runs of this problem stay eager") == 1


def test_what_compile_true_was_refused_is_not_tried_beside(
    forks: list[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, made = refusing(monkeypatch), tanh_network(SGD(lr=0.1))
    gimli.meta_gradient(**made, compile=True)
    assert tried == ["whole", "retained"]
    for _ in range(3):
        gimli.meta_gradient(**made)
    assert tried == ["whole", "retained"]
    assert not forks


def test_a_fork_that_ended_well_is_followed_and_a_failure_then_is_the_last(
    forks: list[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, made = refusing(monkeypatch), tanh_network(SGD(lr=0.1))
    for _ in range(2):
        gimli.meta_gradient(**made)
    assert not tried
    forks[0].end("retained")
    other = {**made, "val_batch": (torch.randn(7, 3), torch.randn(7))}
    gimli.meta_gradient(**other)
    assert not tried  # what was compiled is for other shapes
    for _ in range(3):
        gimli.meta_gradient(**made)
    assert tried == ["retained"]
    assert len(forks) == 1


def test_steps_that_leave_a_tensor_alone_are_not_compiled(monkeypatch: pytest.MonkeyPatch, forks: list[Forked]) -> None:
    """That is found out in the fork: it takes as long as a run."""
    works: list[Callable[[], str]] = []
    monkeypatch.setattr(in_time, "Beside", lambda work, seconds: (works.append(work), Forked(work, seconds))[1])

    def first_alone(theta: dict[str, Tensor], phi: Any, batch: Tensor) -> Tensor:
        return (theta["w"] * batch).square().sum()

    x, problem = torch.ones(2), gimli.Problem(first_alone, first_alone, Adam(lr=0.1))
    call = (problem, {"w": torch.ones(2), "v": torch.ones(2)}, [x, x], x)
    evaluated: list[Any] = []
    monkeypatch.setattr(in_time, "unfit", lambda inputs: (evaluated.append(inputs), choice.unfit(inputs))[1])
    for _ in range(3):
        gimli.meta_gradient(*call)
    assert not evaluated
    with pytest.raises(Uncompiled, match="train_loss does not use 'v' in some step"):
        works[0]()
    assert evaluated
    forks[0].end("train_loss does not use 'v'", failed=True)
    gimli.meta_gradient(*call)
    assert problem.memo.patience.refused


def test_batches_are_looked_up_before_a_fork(monkeypatch: pytest.MonkeyPatch, forks: list[Forked]) -> None:
    """In it a file may not be read."""
    works: list[Callable[[], str]] = []
    monkeypatch.setattr(in_time, "Beside", lambda work, seconds: (works.append(work), Forked(work, seconds))[1])
    monkeypatch.setattr(in_time, "compiled_twice", lambda inputs, kinds, allowed: str(inputs.values.batch(0)[0].sum()))
    made = tanh_network(SGD(lr=0.1))
    batches, asked = made["train_batches"], []
    made |= {"train_batches": lambda j: (asked.append(j), batches[j])[1], "steps": 4}
    gimli.meta_gradient(**made)
    before = len(asked)
    assert works[0]() == str(batches[0][0].sum())
    assert len(asked) == before


@pytest.mark.parametrize("left_out", [{"memory": gimli.memory.StoreStates()}, {"compile": False}, {"steps": 0}])
def test_runs_that_are_left_eager(left_out: dict[str, Any], forks: list[Forked]) -> None:
    gimli.meta_gradient(**{**tanh_network(SGD(lr=0.1)), **left_out})
    assert not forks


def test_only_the_library_s_own_processor_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: clock[0])

    def events() -> Iterator[int]:
        for j in range(3):
            clock[0] += 1.0
            yield j

    patience = Patience()
    for _ in in_time.clocked(patience, events()):
        clock[0] += 100.0  # someone who watches
    assert patience.eager_seconds == patience.last_seconds == 3.0
    for _ in in_time.clocked(patience, events()):
        break
    assert patience.eager_seconds == 4.0


def test_where_nobody_watches_the_clock_is_read_at_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter(range(100))
    monkeypatch.setattr(time, "thread_time", lambda: 10.0 * next(reads))
    patience = Patience()
    assert list(in_time.clocked(patience, iter(range(5)), watched=False)) == list(range(5))
    assert patience.eager_seconds == patience.last_seconds == 10.0


def test_the_user_s_time_between_unroll_and_backward_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: clock[0])
    lr = torch.tensor(0.1, requires_grad=True)
    made = tanh_network(SGD(), phi_opt={"lr": lr})
    loss = gimli.unroll(**made)
    clock[0] += 1000.0
    loss.backward()
    assert made["problem"].memo.patience.eager_seconds == 0.0


def conv(width: int) -> dict[str, Any]:
    """The smallest of the networks whose whole run was never compiled to the end."""
    layers: list[torch.nn.Module] = []
    for i in range(4):
        norm = torch.nn.BatchNorm2d(width, track_running_stats=False)
        layers += [torch.nn.Conv2d(width if i else 1, width, 3, padding=1, stride=2), norm, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(width, 5))

    def loss(theta: dict[str, Tensor], phi: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(torch.func.functional_call(net, theta, (batch[0],)), batch[1])

    batch = torch.randn(2, 5, 1, 8, 8), torch.arange(5).expand(2, 5)
    theta_0 = {k: v.detach() for k, v in net.named_parameters()}
    problem = gimli.Problem(loss, loss, SGD(lr=0.1))
    return {"problem": problem, "theta_0": theta_0, "train_batches": [batch] * 5, "val_batch": batch, "tasks": 2}


def test_a_whole_run_is_compiled_only_where_its_operations_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refusing(monkeypatch)
    gimli.meta_gradient(**conv(4), compile=True)
    assert tried == ["retained"]
    for steps, expected in ((5, ["whole", "retained"]), (90, ["retained"])):
        tried.clear()
        gimli.meta_gradient(**tanh_network(SGD(lr=0.1), T := 3, steps=steps), compile=True)
        assert tried == expected, T


def test_operations_are_counted_once_and_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch)
    counted, plain = [], operations.operations_of_step
    monkeypatch.setattr(
        operations, "operations_of_step", lambda inputs: (counted.append(plain(inputs)), counted[-1])[1]
    )
    made = tanh_network(SGD(lr=0.1))
    before = torch.get_rng_state()
    for _ in range(3):
        gimli.meta_gradient(**made, compile=True)
    assert torch.equal(before, torch.get_rng_state())
    assert len(counted) == 1
    assert 20 < counted[0] < 200


@pytest.mark.long
@problems.needs_compiler
def test_the_default_compiles_once_eager_runs_have_taken_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it: the fork, its cache, the switch, the numbers; and what no longer fits is not compiled again."""
    used: list[bool] = []
    plain = CompiledWhole.__call__
    monkeypatch.setattr(CompiledWhole, "__call__", lambda self, given: (used.append(True), plain(self, given))[1])
    made = tanh_network(SGD(lr=0.1), steps=2)
    first = gimli.meta_gradient(**made)
    assert not said(caplog)
    monkeypatch.setattr(in_time, "AUTO_SECONDS", 0.0)
    monkeypatch.setattr(in_time, "WAIT", 600.0)
    monkeypatch.setattr(os, "nice", lambda more: 0)  # beside other tests it would take its time
    end = time.monotonic() + in_time.GIVE_UP
    while not used:
        assert time.monotonic() < end
        assert not made["problem"].memo.patience.refused, said(caplog)
        agree(gimli.meta_gradient(**made), first)
        time.sleep(0.1)
    for text in ("compiling beside the run", "compiling the whole run", "compiled in "):
        assert said(caplog).count(text) == 1
    monkeypatch.setattr(problems, "SLOPE", 2.0)
    for _ in range(2):
        agree(gimli.meta_gradient(**made), gimli.meta_gradient(**made, compile=False))
    assert said(caplog).count("what the losses read besides their arguments has changed") == 1
