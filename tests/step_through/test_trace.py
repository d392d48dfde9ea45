"""What a page is drawn from: the engine's own numbers, small files, errors and odd names."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import StoreStates
from gimli_core.step_through.page.experiments import Experiments, Plane
from gimli_core.step_through.page.summaries import MOST_TENSORS, numbers, plan
from gimli_core.step_through.page.trace import Trace
from tests.killing import killed_until_done
from tests.problems import failing, network


def data_of(trace: Trace) -> dict[str, Any]:
    """The JSON as a browser would read it from the page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', trace.html(), re.S)
    assert found
    read: dict[str, Any] = json.loads(found[1])
    return read


def traced(**changed: Any) -> Trace:
    return gimli.trace(gimli.step_through(**network(**changed)))


def test_the_numbers_are_the_engines_own() -> None:
    data, result = data_of(traced()), gimli.meta_gradient(**network())
    flat = [x for k in ("w", "b") for x in result.B_0[k].reshape(-1).tolist()]
    assert [x for cell in data["q"]["B"]["cells"][0] for x in cell["v"]] == flat
    assert data["loss"] == result.train_losses.tolist()
    assert data["val"]["loss"] == result.val_loss.item()
    final = {leaf["label"]: leaf["final"]["v"] for leaf in data["A"]}
    assert final == {
        "phi_opt['lr']": [result.A_opt["lr"].item()],
        "phi_opt['beta2']": [result.A_opt["beta2"].item()],
        "phi_loss['decay']": [result.A_loss["decay"].item()],
    }
    assert all(leaf["after"][0] == leaf["final"] for leaf in data["A"])


def test_every_moment_is_there_in_order() -> None:
    moments = list(gimli.step_through(**network(), memory=StoreStates()))
    events = data_of(gimli.trace(gimli.step_through(**network(), memory=StoreStates())))["events"]
    assert list(zip(events["line"], events["j"], events["replay"], strict=True)) == [
        (m.line, m.j, int(m.replay)) for m in moments
    ]
    assert events["bytes"] == [m.bytes for m in moments]


def test_increments_sum_to_the_result() -> None:
    for leaf in traced().data["A"]:
        total = leaf["start"]["v"][0] + sum(inc["v"][0] for inc in reversed(leaf["inc"]))
        assert total == pytest.approx(leaf["final"]["v"][0], rel=1e-13)


def test_hessian_and_jacobian_against_autograd() -> None:
    arguments = network()
    trace = gimli.trace(gimli.step_through(**arguments))
    theta_0, phi = arguments["theta_0"], arguments["phi_loss"]

    def flat_loss(flat: Tensor) -> Tensor:
        return arguments["problem"].train_loss({"w": flat[:3], "b": flat[3]}, phi, arguments["train_batches"](0))

    flat = torch.cat([theta_0["w"], theta_0["b"].reshape(1)])
    expected = torch.autograd.functional.hessian(flat_loss, flat)
    torch.testing.assert_close(torch.tensor(trace.data["hessian"][0]).reshape(4, 4), expected, rtol=1e-12, atol=1e-14)
    assert trace.data["rows"] == 12  # theta and two moments
    # The chain of the whole Jacobians takes (B_J, S_J) to (B_0, S_0).
    q = trace.data["q"]

    def row(j: int) -> Tensor:
        return torch.tensor(
            [x for n in ("B", "S.exp_avg", "S.exp_avg_sq") for cell in q[n]["cells"][j] for x in cell["v"]]
        )

    swept = row(4)
    for j in reversed(range(4)):
        swept = swept @ torch.tensor(trace.data["jacobian"][j]).reshape(12, 12)
        torch.testing.assert_close(swept, row(j), rtol=1e-10, atol=1e-13)


def test_the_two_parts_of_V_are_the_whole() -> None:
    q = traced().data["q"]
    for j in range(4):
        for whole, one, other in zip(*(q[n]["cells"][j] for n in ("V", "V_theta", "V_state")), strict=True):
            parts = [a + b for a, b in zip(one["v"], other["v"], strict=True)]
            assert parts == pytest.approx(whole["v"], rel=1e-12, abs=1e-15)


def test_what_is_held_is_the_schedules_own() -> None:
    held = traced(memory=StoreStates()).data["held"]
    assert sorted(j for kind, j, *_ in held if kind == "point") == [0, 1, 2]
    assert [j for kind, j, *_ in held if kind == "graph"] == [3]
    assert all(begin < end for *_, begin, end in held)


def test_a_run_that_fails_is_shown_up_to_there() -> None:
    trace = gimli.trace(gimli.step_through(**failing(7)))
    assert isinstance(trace.error, RuntimeError)
    assert trace.result is None
    data = data_of(trace)
    assert data["error"]["after"] == "after line 6 of step 6"
    assert "disk" in data["error"]["message"]
    assert len(data["loss"]) == 7
    assert data["events"]["line"] == [5, 6] * 7
    assert data["q"]["theta"]["cells"][7] is not None
    assert data["q"]["theta"]["cells"][8] is None
    assert sorted(j for kind, j, *_ in data["held"] if kind == "graph") == list(range(6))  # as seen at line 6 of step 6


def test_numbers_that_are_not_finite_are_named() -> None:
    assert numbers(torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])) == [1.0, "nan", "inf", "-inf"]


def test_single_precision_is_written_with_its_own_digits() -> None:
    t = torch.tensor([0.1, 1 / 3], dtype=torch.float32)
    assert numbers(t) == [0.1, 0.33333334]
    assert torch.equal(torch.tensor(numbers(t), dtype=torch.float32), t)


def test_interventions_are_recorded_and_labelled() -> None:
    def double(moment: Any) -> None:
        if (moment.line, moment.j) == (5, 1):
            moment.change("G", {k: 2 * v for k, v in moment.values["G"].items()})

    trace = gimli.trace(gimli.step_through(**network()), intervene=double)
    plain = traced()
    assert trace.data["interventions"] == ["G changed at line 5 of step 1"]
    ours, theirs = (t.data["q"]["G"]["cells"][1][0]["v"] for t in (trace, plain))
    assert ours == [2 * x for x in theirs]


@pytest.mark.parametrize(
    ("width", "steps"),
    [
        (120, 6),
        (3, 300),
        pytest.param(300, 50, marks=pytest.mark.long),
        pytest.param(40, 400, marks=pytest.mark.long),
        pytest.param(3, 3000, marks=pytest.mark.long),
    ],
)
def test_a_page_stays_small(width: int, steps: int) -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return sum(((t - 1) ** 2).sum() for t in theta.values())  # type: ignore[return-value]

    theta = {f"layer{i}.weight": torch.randn(width, width) for i in range(6)}
    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=1e-3, momentum=0.5))
    trace = gimli.trace(gimli.step_through(problem, theta, lambda j: None, None, steps=steps, check=False))
    assert len(trace.html().encode()) < 10_000_000
    data = data_of(trace)
    assert all(n is not None for n in data["q"]["B"]["norm"])
    assert data["q"]["theta"]["cells"][0][0]


def test_large_tensors_are_summarised_truly() -> None:
    big = torch.randn(100, 120)
    detail = plan({"w": big}, 50, 9)
    assert not detail.full

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] ** 2).sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=1e-3))
    walk = gimli.step_through(problem, {"w": big}, lambda j: None, None, steps=50, check=False)
    trace = gimli.trace(walk, follow=["w[3, 7]"])
    cell = trace.data["q"]["theta"]["cells"][0][0]
    assert (cell["lo"], cell["hi"]) == (big.min().item(), big.max().item())
    assert sum(cell["h"]) == big.numel()
    index, value = cell["top"][0]
    assert value == big.reshape(-1)[index].item()
    assert abs(value) == big.abs().max().item()
    assert trace.data["follow"][0]["label"] == "w[3, 7]"
    assert trace.data["follow"][0]["q"]["theta"][0] == big[3, 7].item()


def test_looking_does_not_disturb_a_random_loss() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, theta, (x,)).square().mean()

    arguments: dict[str, Any] = {
        "problem": gimli.Problem(loss, loss, gimli.optimizers.Adam(lr=0.1)),
        "theta_0": dict(net.named_parameters()),
        "train_batches": lambda j: torch.ones(6, 3),
        "val_batch": torch.ones(6, 3),
        "steps": 5,
        "phi_opt": {"lr": 0.1},
    }
    torch.manual_seed(4)
    expected = gimli.meta_gradient(**arguments)
    torch.manual_seed(4)
    trace = gimli.trace(gimli.step_through(**arguments))
    assert trace.data["hessian"][0]
    assert trace.result is not None
    assert torch.equal(trace.result.A_opt["lr"], expected.A_opt["lr"])


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="expected a file that can be written"):
        traced(steps=1).save(tmp_path / "nowhere" / "page.html")
    with pytest.raises(ArgumentError, match="got a directory"):
        traced(steps=1).save(tmp_path)


def test_a_full_disk_leaves_the_page_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = tmp_path / "page.html", traced(steps=1)
    path.write_text("the page before", "utf-8")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ArgumentError, match="no space left on device"):
            made.save(path)
    assert path.read_text("utf-8") == "the page before"
    assert list(tmp_path.iterdir()) == [path]
    if Path("/dev/full").exists():  # a disk on which every write fails
        with pytest.raises(ArgumentError, match="no space left on device"):
            made.save("/dev/full")


def test_a_kill_leaves_a_whole_page_or_none(tmp_path: Path) -> None:
    path, made = tmp_path / "page.html", traced(steps=2)
    whole = made.html()

    def write() -> None:
        for _ in range(3):
            made.save(path)

    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        killed_until_done(write, path, [delay])
        assert path.read_text("utf-8") == whole
        path.unlink()


def test_an_entry_that_is_not_there() -> None:
    for text, message in (
        ("v[0]", "Use one of 'w', 'b'"),
        ("w[3]", r"within the shape \[3\]"),
        ("w[x]", "Count from 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            gimli.trace(gimli.step_through(**network()), follow=[text])


def test_a_notebook_gets_the_whole_page() -> None:
    import html

    trace = traced(steps=1)
    shown = trace._repr_html_()
    assert shown.startswith("<iframe ")
    found = re.search(r'srcdoc="([^"]*)"', shown)
    assert found
    assert html.unescape(found[1]) == trace.html()


def test_no_steps_at_all() -> None:
    data = data_of(traced(steps=0))
    assert data["events"]["line"] == [8, 9, 16]


@pytest.mark.parametrize(
    ("taken", "says"), [(0, "complete"), (1, "from line 6 of step 0 on"), (9, "had begun"), (99, "nothing")]
)
def test_a_trace_says_how_much_it_has(taken: int, says: str) -> None:
    walk = gimli.step_through(**network(steps=2))
    total = sum(1 for _ in gimli.step_through(**network(steps=2)))
    for _ in zip(range(taken), walk, strict=False):
        pass
    trace = gimli.trace(walk)
    assert trace.error is None
    assert says in repr(trace)
    assert f"moments={max(0, total - taken)}" in repr(trace)
    assert (trace.result is None) == (taken >= total)
    assert data_of(trace)["extent"] == trace.data["extent"]


@pytest.mark.parametrize("walk", [[1], None, 3, "momentum"])
def test_what_is_no_walk(walk: Any) -> None:
    with pytest.raises(ArgumentError, match=r"expected a walk from gimli\.step_through"):
        gimli.trace(walk)


@pytest.mark.parametrize("path", [None, 3, "a\0b", "x" * 300, "\ud800"])
def test_what_is_no_place_for_a_page(path: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a file that can be written"):
        traced(steps=1).save(path)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"line": 14, "j": 99}, "j from 0 to 2 at line 14; got line=14, j=99"),
        ({"line": 7}, "a line of [5, 6, 8, 9, 11, 12, 13, 14, 16]; got line=7, j=0"),
        ({"height": 3}, "pixels from 200 on; got 3"),
        ({"height": True}, "pixels from 200 on; got True"),
    ],
)
def test_a_cell_is_of_a_moment_that_was_recorded(asked: dict[str, Any], said: str) -> None:
    def loss(theta: Any, phi: Any, target: Tensor) -> Tensor:
        return (theta["w"] - target).square().sum() / 2

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    trace = gimli.trace(gimli.step_through(problem, {"w": torch.zeros(2)}, [torch.ones(2)] * 3, torch.ones(2)))
    with pytest.raises(ArgumentError, match=re.escape(said)):
        trace.cell(**asked)


@pytest.mark.parametrize("title", ["\ud800", None, 3])
def test_a_title_that_no_page_can_hold_is_named_before_the_work(title: Any) -> None:
    walk = gimli.step_through(**network())
    with pytest.raises(ArgumentError, match="title: expected text"):
        gimli.trace(walk, title=title)
    assert next(walk).line == 5


def test_many_tensors_are_gathered_alike() -> None:
    theta = {f"w{i}": torch.randn(1 + i % 2, dtype=torch.float64) for i in range(MOST_TENSORS + 50)}

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return torch.cat(list(theta.values())).square().sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1, momentum=0.5))
    walk = gimli.step_through(problem, theta, [None], None, phi_opt={"lr": dict.fromkeys(theta, 0.1)}, check=False)
    data = data_of(gimli.trace(walk))
    assert len(data["tensors"]) == MOST_TENSORS
    assert all(len(cells) == MOST_TENSORS for q in data["q"].values() for cells in q["cells"] if cells)
    assert data["count"] == {"tensors": MOST_TENSORS + 50, "leaves": MOST_TENSORS + 50}
    assert data["tensors"][-1]["shape"] == [sum(map(torch.numel, theta.values())) - 2 * 125 - (MOST_TENSORS - 1 - 125)]
    whole = torch.cat(list(theta.values())).norm().item()
    assert data["q"]["theta"]["norm"][0] == pytest.approx(whole, rel=1e-14)


def test_lessons_can_be_imported() -> None:
    imported = importlib.import_module("gimli_core.lessons")
    assert imported is gimli.lessons
    assert imported.LESSONS


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_walk_over_tasks_is_shown_as_any_other(reduce: str) -> None:
    h, c = torch.tensor([3.0, 1.0]), torch.tensor([1.2, -0.5])

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (batch[0] * (theta["w"] - batch[1]) ** 2).sum() / 2

    arguments: dict[str, Any] = {
        "problem": gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1)),
        "theta_0": {"w": torch.tensor([0.4])},
        "train_batches": lambda j: (h, c),
        "val_batch": (h, c + 0.3),
        "steps": 4,
        "phi_opt": {"lr": 0.1},
        "tasks": gimli.Tasks(2, reduce=reduce),
    }
    plane = Plane((0.0, 1.0), (0.0, 1.0), columns=3, rows=3)
    made = gimli.trace(gimli.step_through(**arguments), experiments=Experiments(vary={"lr": [0.2]}, plane=plane))
    data, result = made.data, gimli.meta_gradient(**arguments)
    assert (data["extent"], data["optimizer"], data["rule"], data["tasks"]) == ("complete", "SGD", "sgd", 2)
    assert data["A"][0]["final"]["v"] == [result.A_opt["lr"].item()]
    assert sum(data["q"]["B"]["cells"][0][0]["v"]) == pytest.approx(result.B_0["w"].item(), rel=1e-12)
    scale = 1.0 if reduce == "sum" else 0.5
    losses = [scale * float((h * (theta - c) ** 2).sum()) / 2 for theta in _thetas(data)]
    assert data["loss"] == pytest.approx(losses[:-1], rel=1e-12)
    corner = scale * float((h * (torch.ones(2) - c) ** 2).sum()) / 2
    assert data["experiments"]["plane"]["ell"][-1] == pytest.approx(corner, rel=1e-3)
    moved = gimli.meta_gradient(**{**arguments, "phi_opt": {"lr": 0.2}})
    assert data["experiments"]["vary"][0]["val"] == [moved.val_loss.item()]


def _thetas(data: dict[str, Any]) -> list[Tensor]:
    cells = data["q"]["theta"]["cells"]
    return [torch.tensor(cells[j][0]["v"]) for j in range(data["steps"] + 1)]


@pytest.mark.parametrize("argument", ["follow", "intervene", "notes", "experiments"])
@pytest.mark.parametrize("asked", [3, float("nan"), "w[0]", torch.ones(2), [1], {1: 2}.values()], ids=str)
def test_what_a_trace_cannot_do_is_refused_before_it_runs(argument: str, asked: Any) -> None:
    walk = gimli.step_through(**network())
    with pytest.raises(ArgumentError, match=f"^{argument}: expected"):
        gimli.trace(walk, **{argument: asked})
    assert next(walk).line == 5  # nothing of it has run
