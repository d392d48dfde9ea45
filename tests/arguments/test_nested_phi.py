"""A phi_loss of dicts in dicts gives what its entries give in one flat dict, in the structure that it came in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError

X, Y = torch.arange(12).double().reshape(4, 3) / 7, torch.tensor([0.3, -0.2, 0.9, 0.4]).double()
THETA = {"w": torch.tensor([0.2, -0.4, 0.1]).double(), "b": torch.tensor(0.3).double()}
W, S, C = (torch.tensor(v).double() for v in ([[0.1, 0.2, -0.3]], 0.7, 0.05))


def flat_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    pull = (theta["w"] - phi["weight"][0]).square().sum() * phi["scale"].exp()
    return ((X * batch) @ theta["w"] + theta["b"] - Y).square().mean() + phi["l2"] * pull + phi["l2"] ** 2


def nested_loss(theta: dict[str, Tensor], phi: dict[str, Any], batch: Tensor) -> Tensor:
    net = phi["net"]
    assert phi["empty"] == {}
    return flat_loss(theta, {"weight": net["layer.0"]["weight"], "scale": net["scale"], "l2": phi["net.scale"]}, batch)


FLAT = {"weight": W, "scale": S, "l2": C}
NESTED = {"net": {"layer.0": {"weight": W}, "scale": S}, "net.scale": C, "empty": {}}


def problem(loss: Any = nested_loss, rule: Any = None) -> gimli.Problem:
    return gimli.Problem(loss, loss, rule or gimli.optimizers.Adam(lr=0.1))


def rest(steps: int = 4) -> dict[str, Any]:
    return {
        "theta_0": THETA,
        "train_batches": [torch.tensor(1 + 0.1 * j) for j in range(steps)],
        "val_batch": torch.tensor(0.9),
    }


def agree(A_loss: Any, expected: dict[str, Tensor]) -> None:
    """A_loss of the nested form has the structure of phi_loss, and the bits of the flat form."""
    assert set(A_loss) == {"net", "net.scale", "empty"}
    assert set(A_loss["net"]) == {"layer.0", "scale"}
    assert A_loss["empty"] == {}
    assert torch.equal(A_loss["net"]["layer.0"]["weight"], expected["weight"])
    assert torch.equal(A_loss["net"]["scale"], expected["scale"])
    assert torch.equal(A_loss["net.scale"], expected["l2"])


@pytest.mark.parametrize("memory", [None, gimli.memory.Checkpoint(2), gimli.memory.StoreStates()], ids=str)
def test_meta_gradient(memory: Any) -> None:
    once, nest = problem(), problem(flat_loss)
    for _ in range(2):  # what is recalled, too
        found = gimli.meta_gradient(once, **rest(), phi_loss=NESTED, memory=memory)
        expected = gimli.meta_gradient(nest, **rest(), phi_loss=FLAT, memory=memory)
        agree(found.A_loss, expected.A_loss)
        assert torch.equal(found.B_0["w"], expected.B_0["w"])
    assert "net" in repr(found)


def test_unroll_fills_the_gradients_of_what_it_came_from() -> None:
    leaves = {k: v.clone().requires_grad_() for k, v in FLAT.items()}
    phi = {"net": {"layer.0": {"weight": leaves["weight"]}, "scale": leaves["scale"]}, "net.scale": leaves["l2"]}
    gimli.unroll(problem(), **rest(), phi_loss={**phi, "empty": {}}).backward()
    expected = gimli.meta_gradient(problem(flat_loss), **rest(), phi_loss=FLAT).A_loss
    assert all(torch.equal(leaves[k].grad, v) for k, v in expected.items())  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_tasks_with_entries_of_their_own(chunk: int | None, whole: bool) -> None:
    def rows(value: Tensor) -> Tensor:
        return torch.stack([value, value + 0.1, value - 0.1])

    tasks = gimli.Tasks(3, chunk=chunk)
    batches = {"theta_0": THETA, "train_batches": lambda j: torch.ones(3) + j, "val_batch": torch.ones(3), "steps": 3}
    own = gimli.per_task({"weight": rows(W)})
    nested: Any = {"net": {"layer.0": own, "scale": S}, "net.scale": C, "empty": {}}
    flat: Any = {"weight": gimli.per_task(rows(W)), "scale": S, "l2": C}
    if whole:
        nested = gimli.per_task(
            {"net": {"layer.0": {"weight": rows(W)}, "scale": rows(S)}, "net.scale": rows(C), "empty": {}}
        )
        flat = gimli.per_task({k: rows(v) for k, v in FLAT.items()})
    found = gimli.meta_gradient(problem(), **batches, phi_loss=nested, tasks=tasks)
    expected = gimli.meta_gradient(problem(flat_loss), **batches, phi_loss=flat, tasks=tasks)
    assert found.A_loss["net"]["layer.0"]["weight"].shape == (3, 1, 3)
    agree(found.A_loss, expected.A_loss)


def test_verify_judges_results_and_claims_of_that_structure() -> None:
    report = gimli.verify(problem(), **rest(), phi_loss=NESTED)
    assert report.ok, str(report)
    truth = gimli.meta_gradient(problem(), **rest(), phi_loss=NESTED).A_loss
    wrong = {**truth, "net": {**truth["net"], "scale": truth["net"]["scale"] + 1}}
    assert not gimli.verify(problem(), **rest(), phi_loss=NESTED, claimed={"A_loss": wrong}).ok


def test_a_parameter_dict_in_a_dict() -> None:
    phi = {**NESTED, "net": nn.ParameterDict({"layer.0": nn.ParameterDict({"weight": W}), "scale": S})}
    expected = gimli.meta_gradient(problem(flat_loss), **rest(), phi_loss=FLAT)
    agree(gimli.meta_gradient(problem(), **rest(), phi_loss=phi).A_loss, expected.A_loss)


def test_every_other_door() -> None:
    """adapt, evaluate, step_through, plan and a proximal problem."""
    assert gimli.adapt(problem(), **{k: v for k, v in rest().items() if k != "val_batch"}, phi_loss=NESTED).theta_J
    seen = gimli.evaluate(problem(), **rest(), phi_loss=NESTED, metrics={"loss": nested_loss})
    assert seen.mean == gimli.evaluate(problem(flat_loss), **rest(), phi_loss=FLAT).mean
    assert sum(1 for _ in gimli.step_through(problem(), **rest(), phi_loss=NESTED)) > 10
    assert gimli.plan(problem(), **rest(), phi_loss=NESTED).rows
    nest, plain = (gimli.proximal(p, 0.5) for p in (problem(), problem(flat_loss)))
    found, expected = (
        gimli.meta_gradient(nest, **rest(), phi_loss=NESTED),
        gimli.meta_gradient(plain, **rest(), phi_loss=FLAT),
    )
    agree(found.A_loss, expected.A_loss)
    assert torch.equal(found.B_0["w"], expected.B_0["w"])
    assert gimli.verify(nest, **rest(), phi_loss=NESTED).ok


def test_an_implicit_gradient() -> None:
    star = gimli.adapt(problem(), THETA, lambda j: torch.ones(()), steps=400, phi_loss=NESTED).theta_J
    given = (star, torch.ones(()).double(), torch.ones(()).double())
    options: dict[str, Any] = {"inner_tolerance": 1.0}
    found = gimli.implicit_gradient(problem(), *given, phi_loss=NESTED, **options)
    expected = gimli.implicit_gradient(problem(flat_loss), *given, phi_loss=FLAT, **options)
    agree(found.A_loss, expected.A_loss)


@pytest.mark.parametrize("estimator", [gimli.Unrolled, gimli.Implicit], ids=lambda e: e.__name__)
def test_an_outer_loop_learns_it(estimator: Any) -> None:
    def inner(phi: Any, batch: Any) -> dict[str, Any]:
        net = {"layer.0": {"weight": phi["weight"]}, "scale": phi["scale"]}
        return {**rest(), "phi_loss": {"net": net, "net.scale": phi["l2"], "empty": {}}}

    def plain(phi: Any, batch: Any) -> dict[str, Any]:
        return {**rest(), "phi_loss": dict(phi)}

    phi = {k: v.clone().requires_grad_() for k, v in FLAT.items()}
    more = {"inner_tolerance": 1e9} if estimator is gimli.Implicit else {}
    rule = gimli.optimizers.SGD(lr=0.1)
    found = estimator(problem(rule=rule), phi, inner, **more)(None).A
    expected = estimator(problem(flat_loss, rule), phi, plain, **more)(None).A
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_names_are_data() -> None:
    """Three entries that would all be called "a.b", and odd names."""

    def loss(theta: dict[str, Tensor], phi: dict[str, Any], batch: None) -> Tensor:
        weights = (phi["a"]["b"], 2 * phi["a.b"], 3 * phi["a.b'"], 5 * phi[""][""], 7 * phi["step"]["__class__"])
        return theta["w"].square().sum() * torch.stack(weights).sum()

    one = torch.tensor(0.1)
    phi = {"a": {"b": one}, "a.b": one, "a.b'": one, "": {"": one}, "step": {"__class__": one}}
    rule = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.01))
    A = gimli.meta_gradient(rule, {"w": torch.ones(2)}, [None] * 3, None, phi_loss=phi).A_loss
    first = A["a"]["b"]
    found = torch.stack([A["a.b"], A["a.b'"], A[""][""], A["step"]["__class__"]])
    assert torch.allclose(found, first * torch.tensor([2.0, 3.0, 5.0, 7.0]), rtol=1e-12)


@pytest.mark.parametrize(
    ("phi", "words"),
    [
        ({"a": {1: torch.ones(())}}, r"phi_loss\['a'\]: expected names that are strings"),
        ({"a": {"b": "text"}}, r"phi_loss\['a\.b'\]"),
    ],
)
def test_what_is_no_tensor_is_refused_where_it_stands(phi: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        gimli.meta_gradient(problem(), **rest(), phi_loss=phi)


@pytest.mark.parametrize("beside", [True, False])
def test_an_indexed_entry_within_a_dict(beside: bool) -> None:
    """L_val, which does not see such an entry, was said to ask for it."""
    rows = [torch.tensor(r) for r in ([0, 2], [2, 2], [4, 1])]
    w = gimli.indexed(torch.linspace(0.1, 1, 5).double(), lambda batch: batch)
    more = {"a": C} if beside else {}

    def flat(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (phi["w"] * (theta["w"].sum() - Y[:2]).square()).sum() + phi.get("a", C) * theta["w"].square().sum()

    def val(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"].square().sum() * phi.get("a", C)

    def of_data(loss: Any) -> Any:
        return lambda theta, phi, batch: loss(theta, phi["data"], batch)

    rule = gimli.optimizers.Adam(lr=0.1)
    once, nest = gimli.Problem(flat, val, rule), gimli.Problem(of_data(flat), of_data(val), rule)
    run = {"theta_0": {"w": THETA["w"]}, "train_batches": rows, "val_batch": None}
    for memory in (None, gimli.memory.Checkpoint(1)):
        expected = gimli.meta_gradient(once, **run, phi_loss={"w": w, **more}, memory=memory).A_loss
        found = gimli.meta_gradient(nest, **run, phi_loss={"data": {"w": w, **more}}, memory=memory).A_loss
        assert set(found["data"]) == set(expected)
        assert all(torch.equal(found["data"][k].to_dense(), expected[k].to_dense()) for k in expected)
    asking = gimli.Problem(of_data(flat), lambda theta, phi, batch: phi["data"]["w"].sum() * theta["w"].sum(), rule)
    with pytest.raises(ArgumentError, match=r"leave indexed entries alone: it has no rows; got one .* 'data\.w'"):
        gimli.meta_gradient(asking, **run, phi_loss={"data": {"w": w, **more}})
