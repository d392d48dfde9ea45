"""The device's report, run here in its quick form: right on a right engine, and wrong where a fault is planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ReplayError
from gimli_core.memory.schedules import budget
from gimli_core.optimizers import SGD
from tests.benchmarks.speed.workloads import DATA
from tests.device import contract, memory, schedules, synchronisation, tasks
from tests.device.__main__ import SECTIONS, main
from tests.device.check import Check, Where
from tests.problems import tanh_network

HERE = Where(torch.device("cpu"), quick=True, data=DATA)


def wrong(checks: Any) -> list[Check]:
    return [check for check in checks if not check.right]


@pytest.mark.long
def test_all_is_right_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--quick", "--json", str(tmp_path / "run.json")]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("all right")
    assert "WRONG" not in said
    assert all(f"\n{name}\n  ok" in said for name in SECTIONS)
    assert set(json.loads((tmp_path / "run.json").read_text())["figures"]) == {f"{name}/time" for name in SECTIONS}
    assert torch.get_default_dtype() == torch.float64


@pytest.mark.long
def test_nothing_waits_whatever_the_optimizer() -> None:
    assert not wrong(synchronisation.checks(Where(torch.device("cpu"), quick=False, data=DATA)))


def test_a_wrong_number_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.device.__main__.SECTIONS", {"tasks": tasks.checks})
    right = tasks.of_task
    monkeypatch.setattr(tasks, "of_task", lambda made, i: right(made, min(i, 2)))
    assert main(["--device", "cpu", "--quick", "--json", str(tmp_path / "run.json")]) == 1
    assert "WRONG: tasks: SGD, 4 tasks at once; tasks: Adam, 4 tasks at once" in capsys.readouterr().out


def test_a_section_that_fails_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(where: Where) -> Any:
        yield Check("one", True, "")
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("tests.device.__main__.SECTIONS", {"tasks": failing})
    assert main(["--device", "cpu", "--quick", "--json", str(tmp_path / "run.json")]) == 1


def test_a_wrong_pullback_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pullback = SGD._pullback

    def off(*arguments: Any, **options: Any) -> Any:
        V, *others = pullback(*arguments, **options)
        return V * 1.0005, *others

    monkeypatch.setattr(SGD, "_pullback", off)
    assert any("nesterov" in check.said for check in wrong(contract.checks(HERE)))


def test_other_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = schedules.replayed, iter(range(10))
    monkeypatch.setattr(
        schedules, "replayed", lambda *a, **k: {**(r := plain(*a, **k)), "L": r["L"] + next(calls) * 1e-15}
    )
    assert len(wrong(schedules.checks(HERE))) == 4


def test_an_exceeded_budget_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice of schedule that takes all graphs whatever the budget."""
    monkeypatch.setattr("gimli_core.memory.settle.choose", lambda b, steps, costs: budget.Checkpoint(1, graphs=steps))
    assert wrong(memory.checks(HERE))


def test_a_look_within_the_loops_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    step = SGD._step

    def looking(self: Any, theta: Any, s: Any, G: torch.Tensor, h: Any, t: Any) -> Any:
        G.sum().item()
        return step(self, theta, s, G, h, t)

    monkeypatch.setattr(SGD, "_step", looking)
    told = synchronisation.waits(HERE, synchronisation.on(HERE, SGD(lr=0.1)), gimli.memory.RetainGraphs(), lines=False)
    assert "_local_scalar_dense" in told


def test_a_replay_with_another_loss_is_told_at_the_end_where_a_look_would_stall() -> None:
    """The step is named all the same, and a right replay passes."""
    made, calls = tanh_network(SGD(lr=0.1), steps=4), iter(range(100))

    def drifting(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        return made["problem"].val_loss(theta, phi, batch) * (1 + 0.01 * next(calls))

    problem = gimli.Problem(drifting, made["problem"].val_loss, SGD(lr=0.1))
    call = {**made, "memory": gimli.memory.StoreStates(), "check": False, "compile": False}
    with synchronisation.as_on_a_device():
        gimli.meta_gradient(**call)
        with pytest.raises(ReplayError, match=r"at inner step j = 2: expected .* again"):
            gimli.meta_gradient(**{**call, "problem": problem})
