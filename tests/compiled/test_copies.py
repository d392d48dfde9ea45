"""A part of a traced function is read once and copied: to the graph that reading every call gives, guards and all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

import gimli_core as gimli
from gimli_core.compiled import whole_run
from gimli_core.compiled.compiler.copies import Part, begin, copy, end, every_time, once, tell_compiler, with_copies
from gimli_core.optimizers import LAMB, SGD, Adam, Optimizer
from tests import problems
from tests.compare import agree
from tests.problems import Rule, tanh_network

J = 4
Kinds = Counter[str]


def operations(module: GraphModule) -> Kinds:
    return Counter(str(node.target) for node in module.graph.nodes if node.op.startswith("call"))


def compiled(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[Kinds], list[Kinds]]:
    """(the function compiled, what is in each graph as it was read, and with its copies)."""
    read: list[Kinds] = []
    whole: list[Kinds] = []

    def backend(module: GraphModule, inputs: Any) -> Callable[..., Any]:
        read.append(operations(module))
        with_copies(module)
        whole.append(operations(module))
        forward: Callable[..., Any] = module.forward
        return forward

    tell_compiler()
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False), read, whole


def loop(part: Callable[[str, Part], Part], body: Callable[..., Any], calls: list[Any]) -> list[Any]:
    """All calls forwards, and their second halves in reverse."""
    function = part("body", body)
    done = [function(*call) for call in calls]
    return [results for results, _ in done] + [second(results) for results, second in reversed(done)]


def body(x: dict[str, Tensor], more: Any) -> tuple[Any, Any]:
    kept = x["a"].sin() * x["b"]
    return {"sum": kept + x["a"], "x": x["a"]}, lambda late: (late["sum"] * kept.cos(), more)


def calls_of(*dtypes: torch.dtype, more: Any = None) -> list[Any]:
    return [({"a": torch.rand(3, dtype=dtype), "b": torch.rand(3, dtype=dtype)}, more) for dtype in dtypes]


def test_calls_that_look_alike_are_read_once() -> None:
    calls = calls_of(*5 * [torch.float64])
    f, read, whole = compiled(lambda calls: loop(once, body, calls))
    torch.testing.assert_close(f(calls), loop(every_time, body, calls), rtol=0, atol=0)
    assert [(kinds["sin"], kinds["cos"]) for kinds in read] == [(1, 1)]
    assert [(kinds["sin"], kinds["cos"]) for kinds in whole] == [(5, 5)]
    assert not {str(mark) for mark in (begin, copy, end)} & whole[0].keys()


def in_columns(x: Tensor) -> Tensor:
    return x.expand(2, 3).mT.contiguous().mT


UNLIKE: dict[str, Callable[[], list[Any]]] = {
    "dtypes": lambda: calls_of(torch.float64, torch.float32, torch.float64),
    "constants": lambda: [(x, more) for (x, _), more in zip(calls_of(*3 * [torch.float64]), (1, 2, 1), strict=True)],
    "types of constants": lambda: [*calls_of(torch.float64, more=1), *calls_of(torch.float64, more=True)],
    "names": lambda: [*calls_of(torch.float64), ({"b": torch.rand(3), "a": torch.rand(3)}, None)],
    "strides": lambda: [
        ({k: way(v) for k, v in calls_of(torch.float64)[0][0].items()}, None)
        for way in (in_columns, lambda x: in_columns(x).contiguous())
    ],
    "shapes": lambda: [*calls_of(torch.float64), ({"a": torch.rand(2), "b": torch.rand(2)}, None)],
}


@pytest.mark.parametrize("case", UNLIKE)
def test_calls_that_do_not_are_read_each(case: str) -> None:
    calls = UNLIKE[case]()
    f, read, whole = compiled(lambda calls: loop(once, body, calls))
    torch.testing.assert_close(f(calls), loop(every_time, body, calls), rtol=0, atol=0)
    assert [(kinds["sin"], kinds["cos"]) for kinds in read] == [(2, 2)]
    assert [(kinds["sin"], kinds["cos"]) for kinds in whole] == [(len(calls), len(calls))]


def test_second_halves_that_do_not_look_alike_are_read_each() -> None:
    def halved(x: Tensor) -> tuple[Tensor, Any]:
        return x.sin(), lambda late: x * late.cos()

    def loop_of_dtypes(part: Any, calls: list[Tensor]) -> list[Tensor]:
        function = part("halved", halved)
        seconds = [function(x)[1] for x in calls]
        return [second(x.to(t)) for x, second, t in zip(calls, seconds, dtypes, strict=True)]

    dtypes, calls = (torch.float64, torch.float32, torch.float64), list(torch.rand(3, 2))
    f, read, whole = compiled(lambda calls: loop_of_dtypes(once, calls))
    torch.testing.assert_close(f(calls), loop_of_dtypes(every_time, calls), rtol=0, atol=0)
    assert (read[0]["sin"], read[0]["cos"], whole[0]["cos"]) == (1, 2, 3)


def test_one_tensor_under_two_names_is_two() -> None:
    x, y = torch.rand(2, 3)
    calls = [({"a": x, "b": x}, None), ({"a": x, "b": y}, None), ({"a": y, "b": x}, None)]
    f, read, _ = compiled(lambda calls: loop(once, body, calls))
    torch.testing.assert_close(f(calls), loop(every_time, body, calls), rtol=0, atol=0)
    assert read[0]["sin"] == 1


class Foreign:
    """Of a kind that nothing is known of."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def test_what_is_no_tensor_and_no_constant_is_like_nothing() -> None:
    foreign = [Foreign(factor) for factor in (1.0, 2.0)]

    def scaled(x: Tensor, by: Foreign) -> tuple[Tensor, Any]:
        return x * by.factor, lambda late: late + by.factor

    calls = [(torch.rand(3), by) for by in foreign]
    f, _, _ = compiled(lambda tensors: loop(once, scaled, list(zip(tensors, foreign, strict=True))))
    torch.testing.assert_close(f([x for x, _ in calls]), loop(every_time, scaled, calls), rtol=0, atol=0)


def test_random_numbers_are_drawn_at_every_call() -> None:
    def noisy(x: Tensor) -> tuple[Tensor, Any]:
        noise = torch.rand(3)
        return x + noise, lambda late: late * noise * torch.rand(3)

    calls = [(x,) for x in torch.rand(4, 3)]
    f, read, whole = compiled(lambda calls: loop(once, noisy, calls))
    torch.manual_seed(0)
    expected = loop(every_time, noisy, calls)
    torch.manual_seed(0)
    torch.testing.assert_close(f(calls), expected, rtol=0, atol=0)
    assert [sum(v for k, v in kinds.items() if "rand" in k) for kinds in (read[0], whole[0])] == [2, 8]


class Counting:
    count = 0


SLOPE = 1.0


def test_what_a_part_reads_besides_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    slope, factor, calls = [1.0], Counting(), [(x,) for x in torch.rand(3, 2)]

    def reading(x: Tensor) -> tuple[Tensor, Any]:
        return x.sin() * SLOPE + slope[0] + factor.count, lambda late: late

    f, read, _ = compiled(lambda calls: loop(once, reading, calls))
    changes: list[Callable[[], None]] = [
        lambda: None,
        lambda: monkeypatch.setitem(globals(), "SLOPE", 2.0),
        lambda: slope.__setitem__(0, 3.0),
        lambda: setattr(factor, "count", 4),
    ]
    for change in changes:
        change()
        for _ in range(2):
            torch.testing.assert_close(f(calls), loop(every_time, reading, calls), rtol=0, atol=0)
    assert [kinds["sin"] for kinds in read] == [1] * len(changes)


def test_weights_that_are_put_into_a_module_and_taken_out_are_no_change() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()

    def of_net(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Any]:
        return functional_call(net, weights, (x,)), lambda late: late

    weights = {k: torch.rand_like(v) for k, v in net.named_parameters()}
    calls = [(weights, x) for x in torch.rand(3, 2, 3).to(net[0].weight)]
    f, read, _ = compiled(lambda calls: loop(once, of_net, calls))
    with torch.no_grad():
        torch.testing.assert_close(f(calls), loop(every_time, of_net, calls))
    assert sum(v for k, v in read[0].items() if "linear" in k) == 1


def both_ways(call: dict[str, Any], graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, the same as where each step is read; and eager numbers."""
    arguments = {k: v for k, v in call.items() if k != "problem"}
    problem = call["problem"]

    def fresh() -> gimli.Problem:
        return gimli.Problem(problem.train_loss, problem.val_loss, problem.optimizer)

    found = gimli.meta_gradient(fresh(), **arguments, compile="whole")
    agree(found, gimli.meta_gradient(fresh(), **arguments, compile=False))
    monkeypatch.setattr(whole_run, "once", every_time)
    agree(gimli.meta_gradient(fresh(), **arguments, compile="whole"), found, rtol=0, atol=0)
    assert len(graphs) == 2
    assert operations(graphs[0]) == operations(graphs[1])


@pytest.mark.long
@problems.every_rule
def test_a_whole_run_of_every_rule(rule: Rule, graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch) -> None:
    phi_opt = {name: torch.tensor(value) for name, value in rule.learned.items()}
    both_ways(tanh_network(rule.optimizer, phi_opt=phi_opt), graphs, monkeypatch)


RATES = torch.linspace(0.02, 0.1, J, dtype=torch.float64)
RUNS: dict[str, tuple[Optimizer, dict[str, Any]]] = {
    "tasks": (Adam(), {"tasks": 3, "phi_opt": {"lr": {k: gimli.per_task(RATES[:3]) for k in "wvc"}}}),
    "a rate a step": (SGD(momentum=0.9), {"phi_opt": {"lr": gimli.per_step(RATES), "momentum": 0.8}}),
    "values at many steps": (SGD(lr=0.1), {"val_weights": [0.2, 0.0, 0.1, 1.0]}),
    "tensor by tensor": (LAMB(lr=0.1), {}),
    "one step": (SGD(lr=0.1, momentum=0.9), {"steps": 1}),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_whole_run(case: str, graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, more = RUNS[case]
    both_ways(tanh_network(optimizer, **more), graphs, monkeypatch)


def test_batches_of_several_forms(graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch) -> None:
    call = tanh_network(Adam(), phi_opt={"lr": torch.tensor(0.1)})
    x, y = call["train_batches"][2]
    call["train_batches"][2] = (x[:4], y[:4])
    both_ways(call, graphs, monkeypatch)
