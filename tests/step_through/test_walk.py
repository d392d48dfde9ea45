"""Events: the engine's own numbers, under every schedule, and interventions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import RetainGraphs, StoreStates
from gimli_core.step_through.walk import Walk
from gimli_core.trees import tensors
from tests.problems import network

SCHEDULES = [RetainGraphs(), StoreStates()]


def same(left: Any, right: Any) -> bool:
    pairs = list(zip(tensors(left), tensors(right), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("memory", SCHEDULES, ids=repr)
def test_a_walk_is_the_engine_itself(memory: Any) -> None:
    walk = gimli.step_through(**network(), memory=memory)
    for _ in walk:
        pass
    expected = gimli.meta_gradient(**network(), memory=memory)
    for name in ("val_loss", "A_opt", "A_loss", "B_0", "S_0", "theta_J", "train_losses"):
        assert same(getattr(walk.result, name), getattr(expected, name)), name
    assert walk.result.recurrence == "augmented"


@pytest.mark.parametrize("memory", SCHEDULES, ids=repr)
def test_the_lines_come_in_the_algorithms_order(memory: Any) -> None:
    seen = [(m.line, m.j, m.replay) for m in gimli.step_through(**network(steps=3), memory=memory)]
    forward = [(line, j, False) for j in range(3) for line in (5, 6)]
    again = isinstance(memory, StoreStates)
    backward = []
    for j in (2, 1, 0):
        replay = again and j < 2
        backward += [(5, j, True)] * replay + [(line, j, replay) for line in (11, 12, 13, 14)]
    assert seen == [*forward, (8, 3, False), (9, 3, False), *backward, (16, 0, False)]


def test_the_quantities_obey_the_recurrence() -> None:
    arguments = network()
    walk = gimli.step_through(**arguments)
    optimizer = walk.inputs.form.optimizer
    B: dict[str, Tensor] = {}
    S: dict[str, Any] = {}
    lr = 0.0
    for m in walk:
        if m.line == 9:
            B, S = m.values["B"], m.values["S"]
        if m.line == 11:
            pulled = optimizer.pullback(m.inputs["theta"], m.inputs["s"], m.inputs["G"], m.inputs["phi_opt"], B, S, ())
            assert same(m.values["V"], pulled.V)
        if m.line == 12:
            lr += sum(by_name["lr"].item() for by_name in m.values["A_opt"].values())
        if m.line == 14:
            both = {k: m.values["direct"][k] + m.values["curvature"][k] for k in B}
            assert same(m.values["B"], both)
            B, S = m.values["B"], m.values["S"]
    assert same(B, walk.result.B_0)
    assert math.isclose(lr, walk.result.A_opt["lr"].item(), rel_tol=1e-14)


def test_losses_along_the_way_are_told() -> None:
    arguments = network(steps=3, val_weights=[0.0, 0.5, 0.25, 0.25])
    walk = gimli.step_through(**arguments)
    told = {(m.line, m.j): m.values["B"] for m in walk if m.line in (9, 14)}
    assert [place for place in told if place[0] == 9] == [(9, 3), (9, 2), (9, 1)]
    assert same(walk.result.B_0, gimli.meta_gradient(**arguments).B_0)


def test_time_and_bytes() -> None:
    moments = list(gimli.step_through(**network()))
    assert all(m.seconds > 0 for m in moments)
    gradient = next(m for m in moments if m.line == 5)
    assert gradient.bytes == 8 * (1 + 4)  # the loss, and a gradient of four float64


def test_stopping_early_puts_buffers_back() -> None:
    norm = torch.nn.BatchNorm1d(3).requires_grad_(False)
    before = norm.running_mean.clone()  # type: ignore[union-attr, operator]

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
        return (norm(x) @ theta["w"]).square().mean()

    x = torch.randn(5, 3)
    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    walk = gimli.step_through(problem, {"w": torch.ones(3)}, [x] * 4, x)
    for moment in walk:
        if (moment.line, moment.j) == (6, 2):
            break
    assert not torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    walk.close()
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="reached its last moment"):
        _ = walk.result


def run_with(line: int, j: int, name: str, value: Any, memory: Any = None, **changed: Any) -> Walk:
    walk = gimli.step_through(**network(**changed), memory=memory)
    for moment in walk:
        if (moment.line, moment.j) == (line, j) and not moment.replay:
            moment.change(name, value)
    return walk


@pytest.mark.parametrize("memory", SCHEDULES, ids=repr)
def test_a_changed_theta_is_what_the_run_goes_on_from(memory: Any) -> None:
    put = {"w": torch.tensor([0.1, -0.2, 0.3]), "b": torch.tensor(0.4)}
    walk = run_with(6, 1, "theta", put, memory, steps=4)
    # The rest of the run is a run of its own, from the state that step 1 left.
    states = [m.values["s"] for m in gimli.step_through(**network(steps=4)) if m.line == 6]
    arguments = network(steps=2)
    batches = arguments["train_batches"]
    rest = gimli.meta_gradient(
        **{**arguments, "theta_0": put, "state_0": states[1], "train_batches": lambda j: batches(j + 2)}
    )
    assert same(walk.result.theta_J, rest.theta_J)
    told = [m for m in [walk.result.recurrence] if "theta changed at line 6 of step 1" in m]
    assert told
    assert "not the exact gradient" in repr(walk.result)


@pytest.mark.parametrize("memory", SCHEDULES, ids=repr)
def test_a_changed_gradient_is_the_same_in_its_replay(memory: Any) -> None:
    zero = {"w": torch.zeros(3), "b": torch.zeros(())}
    results = [run_with(5, 0, "G", zero, one).result for one in (memory, RetainGraphs())]
    assert same(results[0].A_opt, results[1].A_opt)
    assert not same(results[0].A_opt, gimli.meta_gradient(**network()).A_opt)


def test_a_changed_adjoint_is_linear_in_what_follows() -> None:
    doubled = gimli.step_through(**network())
    for moment in doubled:
        if moment.line == 9:
            moment.change("B", {k: 2 * v for k, v in moment.values["B"].items()})
    once = gimli.meta_gradient(**network())
    for k, v in once.B_0.items():
        torch.testing.assert_close(doubled.result.B_0[k], 2 * v, rtol=1e-13, atol=0)


def test_each_moment_says_what_was_changed_before_it() -> None:
    walk = gimli.step_through(**network())
    labelled = []
    for moment in walk:
        if (moment.line, moment.j) == (11, 3):
            moment.change("V", {"w": torch.zeros(3)})
        if moment.interventions:
            labelled.append((moment.line, moment.j))
    assert labelled[0] == (12, 3)
    assert labelled == [(12, 3), (13, 3), (14, 3), *((n, j) for j in (2, 1, 0) for n in (11, 12, 13, 14)), (16, 0)]
    assert [str(i) for i in walk.interventions] == ["V changed at line 11 of step 3"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("thta", {}, "expected one of 'theta', 's'.*Did you mean 'theta'"),
        ("theta", {"v": torch.zeros(3)}, "keys among 'w', 'b'"),
        ("theta", {"w": torch.zeros(2)}, r"shape \[3\]; got \[2\]"),
        ("theta", torch.zeros(3), "got Tensor"),
    ],
)
def test_what_cannot_be_changed_is_refused(name: str, value: Any, message: str) -> None:
    walk = gimli.step_through(**network())
    first, second = next(walk), next(walk)
    assert (first.line, second.line) == (5, 6)
    with pytest.raises(ArgumentError, match=message):
        second.change(name, value)
    with pytest.raises(ArgumentError, match="the moment that came last"):
        first.change("G", {})


def test_events_hold_nothing() -> None:
    """A consumer that drops each moment holds no more than the engine does."""
    import gc
    import weakref

    walk = gimli.step_through(**network(), memory=StoreStates())
    seen = []
    for moment in walk:
        if moment.line == 14:
            seen.append(weakref.ref(moment.values["curvature"]["w"]))
        del moment
    gc.collect()
    assert len(seen) == 4
    assert [r() for r in seen] == [None] * 4


def test_O_is_the_optimizers_jacobian() -> None:
    walk = gimli.step_through(**network())
    for m in walk:
        if m.line == 11:
            given = (m.inputs[k] for k in ("theta", "s", "G", "phi_opt"))
            assert same(m.O, walk.inputs.form.optimizer.jacobians(*given)["theta"]["G"])  # type: ignore[attr-defined]
        else:
            with pytest.raises(ArgumentError, match="a moment at line 11"):
                _ = m.O


def test_what_stands_in_a_cell_has_numbers() -> None:
    walk = gimli.step_through(**network())
    assert repr(walk) == "Walk(Adam, steps=4, not begun)"
    moment = next(walk)
    G = torch.cat([t.reshape(-1) for t in moment.values["G"].values()]).norm().item()
    assert repr(moment) == f"Moment(line=5, j=0, loss={moment.values['loss'].item():.6g}, |G|={G:.6g})"
    assert repr(walk) == "Walk(Adam, steps=4, at line 5 of step 0)"
    moment.change("G", {k: torch.zeros_like(t) for k, t in moment.values["G"].items()})
    assert repr(moment).startswith("Moment(line=5, j=0, ")
    assert "|G|=0" in repr(moment)
    assert [repr(m) for m in walk][-1].endswith(", after 1 interventions)")
    assert repr(walk) == "Walk(Adam, steps=4, through, after 1 interventions)"


def test_a_lesson_and_its_verification_in_a_cell() -> None:
    lesson = gimli.lessons.quadratic()
    assert repr(lesson) == f"Lesson('quadratic', {lesson.title!r}, steps=8)"
    assert repr(lesson.verification) == str(lesson.verification)
