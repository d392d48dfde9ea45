"""`per_element`: one value for each element, whatever else the shape could mean."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import SGD, ClipNorm
from gimli_core.verification import verify

GROUPS = {"first": ["a"], "second": ["b"]}


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    return torch.stack([((torch.cosh(v) - batch) ** 2).sum() for v in theta.values()]).sum()


def plain(theta: dict[str, Tensor], batches: Any, rate: Any) -> Tensor:
    """L after the steps, with `rate(j, k)` of the shape of theta[k]; nothing of the engine is used."""
    for j, batch in enumerate(batches[:-1]):
        G = torch.autograd.grad(loss(theta, {}, batch), list(theta.values()), create_graph=True)
        theta = {k: w - rate(j, k) * g for (k, w), g in zip(theta.items(), G, strict=True)}
    return loss(theta, {}, batches[-1])


def equal_shapes(most: int) -> st.SearchStrategy[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """(J, T, two shapes), all drawn from the same few lengths, so that they often coincide."""
    length = st.integers(1, most)
    return st.tuples(length, length, st.lists(length, max_size=2).map(tuple), st.lists(length, max_size=2).map(tuple))


@settings(max_examples=40)
@given(drawn=equal_shapes(3), by_step=st.booleans(), tasks=st.booleans(), groups=st.booleans(), where=st.integers(0, 3))
def test_a_marked_value_is_read_as_marked(drawn: Any, by_step: bool, tasks: bool, groups: bool, where: int) -> None:
    """Over J, T, groups and shapes that coincide, with the marks on the dict or on its entries, in any order."""
    J, T, *shapes = drawn
    torch.manual_seed(0)
    theta_0 = {k: torch.randn(p) / 2 for k, p in zip("ab", shapes, strict=True)}
    lead = (*((T,) if tasks else ()), *((J,) if by_step else ()))
    values = {k: 0.01 + 0.05 * torch.rand((*lead, *v.shape)) for k, v in theta_0.items()}
    marks = [gimli.per_element, *([gimli.per_step] if by_step else []), *([gimli.per_task] if tasks else [])]
    marks = [marks, marks[::-1]][where % 2]

    def marked(value: Any) -> Any:
        for mark in marks:
            value = mark(value)
        return value

    phi_opt = {"lr": marked(values) if where < 2 else {k: marked(v) for k, v in values.items()}}
    batches = [torch.rand(T) if tasks else torch.rand(()) for _ in range(J + 1)]
    problem = gimli.Problem(loss, loss, SGD(groups=GROUPS if groups else None))
    more = {"tasks": gimli.Tasks(T, "sum")} if tasks else {}
    result = gimli.meta_gradient(problem, theta_0, batches[:-1], batches[-1], phi_opt=phi_opt, **more)
    assert list(result.A_opt["lr"]) == list(values)

    leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
    total = torch.zeros(())
    for t in range(T if tasks else 1):
        mine = {k: v[t] if tasks else v for k, v in leaves.items()}
        start = {k: v.clone().requires_grad_() for k, v in theta_0.items()}
        total = total + plain(
            start,
            [b[t] if tasks else b for b in batches],
            lambda j, k, mine=mine: mine[k][j] if by_step else mine[k],
        )
    for (k, found), expected in zip(
        result.A_opt["lr"].items(), torch.autograd.grad(total, list(leaves.values())), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=lambda m, k=k: f"{k}: {m}")


def test_one_value_an_element_of_five_ways_and_five_steps() -> None:
    theta_0 = {"weight": torch.ones(5, 4), "bias": torch.ones(5)}
    rates = {k: torch.full_like(v, 0.01) for k, v in theta_0.items()}
    problem = gimli.Problem(loss, loss, SGD())
    batches = [torch.tensor(0.5)] * 5
    for value in (rates, gimli.per_element(rates), {**rates, "bias": gimli.per_element(rates["bias"])}):
        A = gimli.meta_gradient(problem, theta_0, batches, batches[0], phi_opt={"lr": value}).A_opt["lr"]
        assert {k: v.shape for k, v in A.items()} == {k: v.shape for k, v in theta_0.items()}
        assert torch.equal(A["bias"], A["bias"][0].expand(5))
        verify(problem, theta_0, batches, batches[0], phi_opt={"lr": value}).assert_ok()


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_keep_the_mark(chunk: int) -> None:
    theta_0, values = {"a": torch.randn(2)}, torch.rand(2, 2) / 20  # T = J = 2
    batches = [torch.rand(2) for _ in range(3)]
    problem, phi_opt = gimli.Problem(loss, loss, SGD()), {"lr": gimli.per_task(gimli.per_element({"a": values}))}
    whole, parts = (
        gimli.meta_gradient(
            problem, theta_0, batches[:-1], batches[-1], tasks=gimli.Tasks(2, chunk=c), phi_opt=phi_opt
        ).A_opt["lr"]
        for c in (None, chunk)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def test_unroll_reaches_what_is_marked() -> None:
    rates = (torch.rand(2) / 20).requires_grad_()
    problem = gimli.Problem(loss, loss, SGD())
    given = {"lr": {"a": gimli.per_element(rates)}}
    batches = [torch.tensor(0.3)] * 2
    gimli.unroll(problem, {"a": torch.ones(2)}, batches, batches[0], phi_opt=given).backward()
    result = gimli.meta_gradient(problem, {"a": torch.ones(2)}, batches, batches[0], phi_opt=given)
    assert torch.equal(rates.grad, result.A_opt["lr"]["a"])


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("by_step", [False, True])
def test_the_entries_of_a_dict_are_read_alike(steps: int, by_step: bool) -> None:
    """What is as long as J by chance means what the entries beside it mean; alone it is refused."""
    theta_0 = {"weight": torch.randn(5, 3), "bias": torch.randn(5)}

    def shape(v: Tensor) -> tuple[int, ...]:
        return (steps, *v.shape) if by_step else tuple(v.shape)

    rates = {k: 0.1 * torch.rand(shape(v)) for k, v in theta_0.items()}
    if by_step:
        rates["bias"] = 0.1 * torch.rand(steps)  # one value a step
    problem = gimli.Problem(loss, loss, SGD())
    batches = [torch.tensor(0.3)] * steps
    result = gimli.meta_gradient(problem, theta_0, batches, batches[0], phi_opt={"lr": rates})
    assert {k: v.shape for k, v in result.A_opt["lr"].items()} == {k: v.shape for k, v in rates.items()}
    gimli.verify(problem, theta_0, batches, batches[0], phi_opt={"lr": rates}).assert_ok()
    if steps == 5:
        with pytest.raises(ArgumentError, match="one reading"):
            gimli.meta_gradient(
                gimli.Problem(loss, loss, SGD(lr=0.1)),
                theta_0,
                batches,
                batches[0],
                phi_opt={"lr": {"bias": rates["bias"]}},
            )


WRONG: dict[str, tuple[Any, Any, str]] = {
    "two shapes": (SGD(), {"lr": gimli.per_element(torch.ones(2))}, "values per element of one shape of tensor"),
    "of another shape": (SGD(), {"lr": {"a": gimli.per_element(torch.ones(3))}}, r"a shape among \[2\] \(one per el"),
    "one number": (SGD(), {"lr": {"a": gimli.per_element(torch.tensor(1.0))}}, r"a shape among \[2\] \(one per el"),
    "a whole tensor": (ClipNorm(SGD(lr=0.1), 1.0), {"max_norm": gimli.per_element(torch.ones(2))}, "no mark per_elem"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mark_that_does_not_fit_is_refused(case: str) -> None:
    rule, phi_opt, message = WRONG[case]
    theta_0 = {"a": torch.ones(2), "b": torch.ones(2, 2)}
    batches = [torch.tensor(0.5)] * 2
    with pytest.raises(ArgumentError, match=message):
        gimli.meta_gradient(gimli.Problem(loss, loss, rule), theta_0, batches, batches[0], phi_opt=phi_opt)


def test_the_marks_commute() -> None:
    from gimli_core.meta_parameters.marks import Marked, unmarked

    for order in itertools.permutations([gimli.per_element, gimli.per_step, gimli.per_task]):
        value: Any = 1.0
        for mark in order:
            value = mark(value)
        assert Marked().inside(value) == (Marked(True, True, True), 1.0)
        assert unmarked(value) == 1.0
