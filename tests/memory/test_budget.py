"""Sizes, predictions against bytes counted at every operation, and the choice within a budget."""

from __future__ import annotations

import itertools
import re
from collections import deque

import pytest
import torch

import gimli_core as gimli
import gimli_core.memory.measure as measure_module
import gimli_core.memory.meters as meters_module
import gimli_core.memory.storage as storage_module
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import prepare
from gimli_core.compiled.steps import CompiledSteps
from gimli_core.errors import ArgumentError
from gimli_core.memory import Budget, Checkpoint
from gimli_core.memory.allocator import occupied, separates
from gimli_core.memory.measure import costs_of, measure
from gimli_core.memory.meters import OBJECT, LiveBytes
from gimli_core.memory.schedules.actions import Advance
from gimli_core.memory.schedules.budget import choose, estimate, least
from gimli_core.memory.schedules.costs import Act, Costs, predict
from gimli_core.memory.schedules.sizes import parse_size, show_size
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.runs.make_run import makers
from gimli_core.runs.scheduled_run import ScheduledRun
from tests.problems import needs_compiler

EAGER = makers(EagerSteps())[0]

COSTS = Costs(
    start=0,
    point=30,
    step=2,
    gradient=10,
    record=50,
    end=30,
    run=Act(20, 4.0),
    run_graph=Act(60, 4.0),
    run_kept=Act(15, 1.0),
    validate=Act(40, 3.0),
    sweep=Act(50, 6.0),
    sweep_point=Act(60, 10.0),
    holes=0,
    room=0,
    fresh=0.0,
    write=0.5,
    read=0.5,
)


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 << 20), ("1.5 gb", 1_500_000_000), (" 2G ", 2 << 30), (7, 7), ("9b", 9)]
)
def test_sizes(text, size):
    assert parse_size(text) == Budget(text).bytes == size


@pytest.mark.parametrize("text", ["12 parsecs", "", "MiB", "-1MB", "0", 0, True, "1e400", None])
def test_bad_sizes(text):
    with pytest.raises(ArgumentError, match="512MiB"):
        Budget(text)


@pytest.mark.parametrize(
    "options", [{"snapshots": 0}, {"snapshots": 1.5}, {"snapshots": True}, {"snapshots": 1, "graphs": 0}]
)
def test_bad_checkpoints(options):
    with pytest.raises(ArgumentError, match="whole number, at least 1"):
        Checkpoint(**options)
    with pytest.raises(ArgumentError, match="disk=PATH"):
        Checkpoint(1, disk_snapshots=3)


def test_a_budget_alone_has_no_actions():
    with pytest.raises(ArgumentError, match="problem to measure"):
        Budget("1MB").actions(3)


@pytest.mark.parametrize("steps", [2, 7, 40, 300])
def test_more_bytes_never_take_longer(steps):
    smallest = least(steps, COSTS)
    largest = 2 * estimate(Checkpoint(1, graphs=steps), steps, COSTS)[0]
    last = float("inf")
    for size in range(smallest, largest, max(1, (largest - smallest) // 40)):
        schedule = choose(Budget(size), steps, COSTS)
        peak, seconds = estimate(schedule, steps, COSTS)
        walked = predict(schedule.actions(steps), COSTS)
        assert walked.peak <= peak <= size
        assert seconds <= last
        last = seconds
        assert seconds == pytest.approx(walked.seconds, rel=1e-9) or schedule.gradients
    assert not any(isinstance(a, Advance) and a.j < 0 for a in schedule.actions(steps))


def test_the_estimate_is_what_the_walk_adds_up():
    """With one or two costs of a byte, and all others 0, over every schedule of a few steps: an upper bound, and near.

    Twice the most that is possible would be 4, and the sum of all parts 30.
    """
    bytes_of = ("start", "point", "step", "gradient", "record", "end")
    acts = ("run", "run_graph", "run_kept", "validate", "sweep", "sweep_point")
    nothing = Costs(**{name: Act() if name in acts else 0 for name in Costs._fields if name != "ranks"})
    schedules = [
        (steps, Checkpoint(S, graphs=graphs, gradients=gradients))
        for steps in (2, 3, 5, 8)
        for S in range(1, steps + 1)
        for graphs in range(1, steps + 1)
        for gradients in (False, True)
    ]
    slack = []
    for pair in itertools.combinations_with_replacement((*bytes_of, *acts), 2):
        costs = nothing._replace(**{name: Act(1) if name in acts else 1 for name in pair})
        for steps, schedule in schedules:
            slack.append(estimate(schedule, steps, costs)[0] - predict(schedule.actions(steps), costs).peak)
    assert min(slack) >= 0
    assert max(slack) <= 2


def test_too_small_a_budget_says_what_would_do():
    with pytest.raises(ArgumentError, match=r"at least .* for 40 steps; got .*all graphs"):
        choose(Budget(least(40, COSTS) - 1), 40, COSTS)


@pytest.mark.parametrize("ahead", [0, 10**9])
@pytest.mark.parametrize("steps", [2, 7, 40, 300])
def test_every_size_that_a_refusal_names_does_when_it_is_passed(steps, ahead):
    """The least of them is one number wherever it stands, and 1 % less than it does not do."""
    costs = COSTS._replace(ahead=ahead)
    with pytest.raises(ArgumentError) as caught:
        choose(Budget(1), steps, costs)
    said = str(caught.value)
    need = re.search(r"at least (.*?) for", said)[1]
    ways = {name: size for size, name in re.findall(r"([\d.]+ \w+) \(([^)]*)\)", said)}
    assert ways["1 snapshot"] == need
    assert (f"{need} are taken before the run" in said) == (ahead > 0)
    seconds = [estimate(choose(Budget(size), steps, costs), steps, costs)[1] for size in (need, *ways.values())]
    told = [float(t) for t in re.findall(r"takes about (\S+) s", said)]
    assert all(took <= 1.01 * t for took, t in zip(seconds[1:], told, strict=True))
    with pytest.raises(ArgumentError):
        choose(Budget(int(Budget(need).bytes / 1.011)), steps, costs)


@pytest.mark.parametrize("steps", [7, 40, 300])
def test_disk_never_takes_longer(steps, tmp_path):
    """With room for one state only, states on disk save the replays; the rest of memory stays within the budget."""
    size = least(steps, COSTS) + 1
    alone, helped = choose(Budget(size), steps, COSTS), choose(Budget(size, tmp_path), steps, COSTS)
    assert helped.disk == tmp_path
    walked = predict(helped.actions(steps), COSTS)
    assert walked.disk > 0
    assert walked.peak <= size
    assert walked.seconds < predict(alone.actions(steps), COSTS).seconds


def test_a_budget_with_disk_returns_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_module, "_disk_seconds", lambda inputs, disk: (0.0, 0.0))  # so that disk pays
    written = []
    write = storage_module.write_file
    monkeypatch.setattr(storage_module, "write_file", lambda path, *rest: (written.append(path), write(path, *rest)))
    arguments, options = problem()
    expected = gimli.meta_gradient(*arguments, **options)
    found = gimli.meta_gradient(*arguments, **options, memory=Budget(gimli.plan(*arguments, **options).least, tmp_path))
    assert written
    assert torch.equal(found.A_opt["lr"], expected.A_opt["lr"])
    assert all(torch.equal(found.B_0[k], v) for k, v in expected.B_0.items())
    assert list(tmp_path.iterdir()) == []


def test_a_problem_is_measured_once_for_its_shapes(monkeypatch):
    measured = []
    monkeypatch.setattr(
        measure_module, "measure", lambda *given, **more: (measured.append(given), measure(*given, **more))[1]
    )
    arguments, options = problem()
    for steps in (12, 30, 12):
        gimli.meta_gradient(*arguments, **{**options, "steps": steps}, memory=Budget("1GB"))
    assert len(measured) == 1
    gimli.meta_gradient(*arguments, **options, memory=Budget("1GB"), second_order="forward_over_reverse")
    gimli.meta_gradient(*arguments, **options, memory=Budget("1GB"), val_weights=[1.0] * 12)
    assert len(measured) == 3


def test_fresh_memory_has_its_price():
    """What stays costs the time in which the kernel clears it."""
    prices = COSTS._replace(fresh=1.0)
    for schedule in (Checkpoint(4), Checkpoint(10), Checkpoint(2, gradients=True)):
        fresh = min(schedule.snapshots, 10) - 1
        kept = COSTS.point * fresh + (COSTS.gradient * 9 if schedule.gradients else 0)
        assert estimate(schedule, 10, prices)[1] - estimate(schedule, 10, COSTS)[1] == pytest.approx(kept)
        walked = predict(schedule.actions(10), prices).seconds - predict(schedule.actions(10), COSTS).seconds
        assert kept - COSTS.point <= walked <= kept  # where every step has a slot, the last one needs none


@pytest.mark.parametrize("steps", [0, 1])
def test_too_small_a_budget_for_few_steps(steps):
    arguments, options = problem(steps=steps)
    gimli.meta_gradient(*arguments, **options, memory=Budget("1GB"))  # what the first call of a process loads counts
    with pytest.raises(ArgumentError, match=rf"at least \d+ bytes for {steps} steps; got 9 B") as caught:
        gimli.meta_gradient(*arguments, **options, memory=Budget(9))
    need = int(str(caught.value).split("at least ")[1].split()[0])
    gimli.meta_gradient(*arguments, **options, memory=Budget(need))
    with pytest.raises(ArgumentError, match="at least"):
        gimli.meta_gradient(*arguments, **options, memory=Budget(need - 1))


def problem(width=64, steps=12, rows=32):
    x, y = torch.randn(rows, width), torch.randn(rows, width)

    def loss(theta, phi, batch):
        return (torch.tanh(batch[0] @ theta["a"]) @ theta["b"] - batch[1]).square().mean()

    theta_0 = {"a": torch.randn(width, width) / 8, "b": torch.randn(width, width) / 8}
    rule = gimli.Problem(loss, loss, gimli.optimizers.Adam())
    return (rule, theta_0, lambda j: (x, y), (x, y)), {"steps": steps, "phi_opt": {"lr": torch.tensor(1e-3)}}


@pytest.mark.parametrize(
    "schedule",
    [
        Checkpoint(1),
        Checkpoint(4),
        Checkpoint(12),
        Checkpoint(1, graphs=12),
        Checkpoint(2, graphs=3),
        Checkpoint(2, gradients=True),
    ],
)
def test_predicted_bytes_against_counted_bytes(schedule, monkeypatch):
    """Of tensors; the nodes of graphs, which the counter does not see, are left out of the prediction."""
    monkeypatch.setattr(meters_module, "in_use", lambda: 0)
    monkeypatch.setattr(measure_module, "CACHED", 1)
    arguments, options = problem()
    inputs = prepare(Call(*arguments, **options))
    costs = measure(inputs, EAGER)._replace(holes=0)
    predicted = predict(schedule.actions(inputs.form.steps), costs).peak
    meter = LiveBytes()
    with meter:
        execution = EAGER(prepare(Call(*arguments, **options)), schedule)
        deque(execution.forward(), maxlen=0)
        deque(execution.backward(), maxlen=0)
    assert 0.9 <= predicted / meter.peak <= 1.1


def test_plan_and_budget_agree():
    arguments, options = problem(steps=30)
    plan = gimli.plan(*arguments, **options)
    assert {row.name for row in plan.rows} >= {"RetainGraphs()", "StoreStates()", "Checkpoint(10)"}
    assert [row.peak for row in plan.rows] == sorted(row.peak for row in plan.rows)
    text = str(plan)
    count = sum(t.numel() for t in arguments[1].values())
    assert (
        text.splitlines()[0]
        == f"{count:,} parameters in {len(arguments[1])} tensors, {type(arguments[0].optimizer).__name__}"
    )
    table, bars = (part.splitlines() for part in text.split("\n\n"))
    for row in plan.rows:
        (line,) = (line for line in table if line.startswith(row.name + " "))
        picked = f"<- Checkpoint({row.schedule.snapshots}, graphs={row.schedule.graphs})"
        assert line.endswith(picked) == row.name.startswith("Budget")
        assert row.peak + plan.margin == estimate(row.schedule, plan.steps, plan.costs)[0]
        if picked in line:  # what it is called is what can be passed
            assert row.schedule == choose(Budget(line.split("'")[1]), plan.steps, plan.costs)
            assert row.peak + plan.margin <= Budget(line.split("'")[1]).bytes
    if plan.margin:
        assert f"a budget keeps {show_size(plan.margin)} above it free" in table[-1]
        least_row = next(line for line in table if line.startswith("Budget("))
        assert table[-1].endswith(f"The least budget is {least_row.split(chr(39))[1]}.")
    lengths = [[len(bar) for bar in re.findall("#+", line)] for line in bars[1:]]
    assert all(len(each) == 2 for each in lengths)
    for place, sizes in enumerate(([row.peak for row in plan.rows], [row.seconds for row in plan.rows])):
        drawn = [each[place] for each in lengths]
        assert max(drawn) == 24
        assert min(drawn) == 1
        assert [drawn[i] for i in sorted(range(len(sizes)), key=sizes.__getitem__)] == sorted(drawn)
    with pytest.raises(ArgumentError, match="at least"):
        gimli.meta_gradient(*arguments, **options, memory=Budget(plan.least // 3))
    with pytest.raises(ArgumentError, match="at least 2"):
        gimli.plan(*arguments, **{**options, "steps": 1})
    with pytest.raises(ArgumentError, match="compile: expected True or False; got 'whole'"):
        gimli.plan(*arguments, **options, compile="whole")


def test_works_under_unroll():
    arguments, options = problem()
    lr = torch.tensor(1e-3, requires_grad=True)
    gimli.unroll(*arguments, steps=12, phi_opt={"lr": lr}, memory=Budget("1GB")).backward()
    assert torch.equal(lr.grad, gimli.meta_gradient(*arguments, **options).A_opt["lr"])


@pytest.mark.long
@needs_compiler
@pytest.mark.skipif(not separates(), reason="compiled tensors are seen on glibc alone")
def test_compiled_steps_are_measured_as_they_run():
    """What they hold and what the process occupies, against the prediction; eager steps of this problem take more."""
    arguments, options = problem(width=700, steps=8, rows=1024)
    inputs = prepare(Call(*arguments, **options))
    compiled = CompiledSteps(inputs)
    costs = costs_of(inputs, *makers(compiled))
    assert costs.point == costs.end // 2 == 3 * costs.gradient + 8 + OBJECT  # and the count of steps
    assert costs.record == costs.point + costs.gradient
    weighed = prepare(Call(*arguments, **options, val_weights=[1.0] * 8))
    assert costs_of(weighed, *makers(compiled)).record == costs.record + costs.gradient  # and that of L_val
    assert costs.run == costs.run_kept
    assert costs.run.transient == costs.run_graph.transient
    assert choose(Budget(10**12), 8, costs).graphs == 1  # a step takes as long from its record as from its point
    assert costs.run.transient > 3 * costs.gradient  # theta, m and v of the next step, and G
    schedule = Checkpoint(3)
    with occupied() as most:
        execution = ScheduledRun(prepare(Call(*arguments, **options)), schedule, compiled)
        deque(execution.forward(), maxlen=0)
        deque(execution.backward(), maxlen=0)
    # In this process the heap is full of other tests' holes; eager steps' prediction would be half as much again.
    assert 0.75 <= predict(schedule.actions(8), costs).peak / most() <= 1.25
    assert costs.run.transient + costs.sweep_point.transient < sum(
        act.transient for act in (costs_of(inputs, EAGER).run, costs_of(inputs, EAGER).sweep_point)
    )
    assert len(inputs.form.problem.memo.costs) == 3
