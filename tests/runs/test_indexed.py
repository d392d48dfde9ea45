"""Entries of phi_loss with a row for each example: a step sees its batch's rows, and A_loss is a sparse sum of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.arguments.call import Call as Given
from gimli_core.arguments.inputs import prepare
from gimli_core.errors import ArgumentError
from gimli_core.memory import Budget, Checkpoint
from gimli_core.memory.measure import measure
from gimli_core.memory.meters import LiveBytes
from gimli_core.memory.schedules.budget import least
from gimli_core.optimizers import SGD, Adam
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.runs.make_run import makers
from tests import problems
from tests.compare import distance
from tests.indexed import J, N, dense, several, val_loss, weighted
from tests.killing import until_through
from tests.problems import every_schedule

Call = dict[str, Any]


def pair(loss: Any = val_loss, optimizer: Any = None, **more: Any) -> tuple[Call, Call]:
    """The call with an indexed entry, and the one whose loss looks it up in all of it."""
    torch.manual_seed(4)
    batches = [{"x": torch.randn(3, 4), "y": torch.randn(3, 2), "rows": torch.randint(N, (3,))} for _ in range(J)]
    batches[1]["rows"] = torch.tensor([2, 5, 2])  # one that comes twice
    w, l2 = torch.rand(N, 2), torch.tensor(-2.0)
    made = {
        "theta_0": {"w": torch.randn(4, 2)},
        "train_batches": batches,
        "val_batch": {"x": torch.randn(5, 4), "y": torch.randn(5, 2)},
        "phi_opt": {"lr": torch.tensor(0.1)},
        **more,
    }
    rule = optimizer or Adam()
    one = {"problem": gimli.Problem(weighted, loss, rule), "phi_loss": {"of_each": gimli.indexed(w), "l2": l2}}
    return {**made, **one}, {**made, "problem": gimli.Problem(dense, loss, rule), "phi_loss": {"of_each": w, "l2": l2}}


def agrees(found: gimli.MetaGradient, expected: gimli.MetaGradient, bound: float = 1e-12) -> None:
    A = found.A_loss["of_each"]
    assert A.is_sparse
    assert A.is_coalesced()
    assert distance(A.to_dense(), expected.A_loss["of_each"]) <= bound
    assert distance(found.A_loss["l2"], expected.A_loss["l2"]) <= bound
    assert distance(found.B_0["w"], expected.B_0["w"]) <= bound
    assert distance(found.A_opt["lr"], expected.A_opt["lr"]) <= bound


@every_schedule
def test_the_sparse_sum_is_the_dense_one(memory):
    marked, plain = pair()
    found = gimli.meta_gradient(**marked, memory=memory)
    agrees(found, gimli.meta_gradient(**plain))
    again = gimli.meta_gradient(**marked)
    assert torch.equal(found.A_loss["of_each"].to_dense(), again.A_loss["of_each"].to_dense())  # to the bit


@pytest.mark.parametrize(
    "more",
    [
        {"second_order": "forward_over_reverse"},
        {"approximation": gimli.FirstOrder()},
        {"approximation": gimli.Truncated(2)},
        {"val_weights": [0.5, 0.0, 0.2, 1.0]},
    ],
    ids=str,
)
def test_with_other_options(more):
    marked, plain = pair(**more)
    agrees(gimli.meta_gradient(**marked), gimli.meta_gradient(**plain))


def test_with_several_outer_losses_and_in_micro_batches():
    marked, plain = pair(several)
    expected = gimli.meta_gradient(**plain)
    assert gimli.meta_gradient(**marked).A_loss["of_each"].shape == (2, N, 2)
    for micro_batches in (None, 2, 3):
        found = gimli.meta_gradient(**marked, micro_batches=micro_batches)
        assert distance(found.A_loss["of_each"].to_dense(), expected.A_loss["of_each"]) < 1e-12
        assert distance(found.B_0["w"], expected.B_0["w"]) < 1e-12


def test_against_autograd():
    marked, _ = pair()
    assert gimli.verify(**marked).ok
    assert gimli.verify(**marked, micro_batches=2, oracles=["autograd"]).ok


def test_unroll_fills_a_dense_gradient_of_what_made_it():
    marked, plain = pair()
    logits = marked["phi_loss"]["of_each"].value.logit().requires_grad_()
    phi = {**marked["phi_loss"], "of_each": gimli.indexed(logits.sigmoid())}
    gimli.unroll(**{**marked, "phi_loss": phi}).backward()
    w = logits.detach().sigmoid()
    assert distance(logits.grad, gimli.meta_gradient(**plain).A_loss["of_each"] * w * (1 - w)) < 1e-12


def test_where_rows_are_found():
    marked, plain = pair()
    expected = gimli.meta_gradient(**plain)

    def in_a_pair(theta: Any, phi: Any, batch: Any) -> Tensor:
        return weighted(theta, phi, batch[1])

    pairs = [(batch["rows"].int(), batch) for batch in marked["train_batches"]]
    w = marked["phi_loss"]["of_each"].value
    for rows in (0, lambda batch: batch[0]):
        problem = gimli.Problem(in_a_pair, val_loss, Adam())
        phi = {**marked["phi_loss"], "of_each": gimli.indexed(w, rows)}
        agrees(gimli.meta_gradient(**{**marked, "problem": problem, "train_batches": pairs, "phi_loss": phi}), expected)


def test_a_killed_run_goes_on(tmp_path):
    marked, plain = pair()
    found = until_through(lambda: gimli.meta_gradient(**marked, memory=Checkpoint(2), resume=tmp_path / "run"))
    agrees(found, gimli.meta_gradient(**plain))


def test_no_vector_of_all_examples_is_made():
    """Live bytes of a run do not depend on N."""
    peaks, results = [], []
    for n in (10, 10**6):
        marked, _ = pair(optimizer=SGD())
        marked["phi_loss"]["of_each"] = gimli.indexed(torch.ones(n, 2))
        gimli.meta_gradient(**marked)
        with LiveBytes() as meter:
            results.append(gimli.meta_gradient(**marked, memory=Checkpoint(1), check=False))
        peaks.append(meter.peak)
    assert peaks[0] == peaks[1]
    assert results[1].A_loss["of_each"].shape == (10**6, 2)
    assert results[1].A_loss["of_each"]._nnz() <= 3 * J


def test_a_budget():
    marked, plain = pair()
    agrees(gimli.meta_gradient(**marked, memory=Budget("1GB")), gimli.meta_gradient(**plain))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_budget_counts_what_every_step_adds_to_the_sums(rows):
    """Weights of 500 tokens an example: their sums are most of what the run holds, the longer it is."""
    torch.manual_seed(0)
    n, tokens, steps = 40, 500, 30
    x = torch.randn(n, 3)

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        return (phi["w"].mean(1) * (batch["x"] @ theta["a"]).square()).mean()

    def outer(theta: Any, phi: Any, batch: Any) -> Tensor:
        of_each = torch.stack([theta["a"].square().sum() * (q + 1) for q in range(rows)])
        return of_each if rows > 1 else of_each[0]

    batches = [{"x": x[r], "rows": r} for r in (torch.randperm(n)[:8] for _ in range(steps))]
    problem = gimli.Problem(loss, outer, SGD(lr=0.01))
    call = (problem, {"a": torch.randn(3)}, batches, None)
    phi = {"w": gimli.indexed(torch.ones(n, tokens))}
    a_step = rows * 8 * (8 + 8 * tokens)
    costs = measure(prepare(Given(*call, steps, phi_loss=phi)), makers(EagerSteps())[0])
    assert costs.growth == a_step
    size = int(1.03 * least(steps, costs))  # a graph's nodes differ a little from one measurement to the next
    with LiveBytes() as meter:
        gimli.meta_gradient(*call, phi_loss=phi, memory=Budget(size))
    assert steps * a_step < meter.peak <= size


@pytest.mark.long
@problems.needs_compiler
def test_compiled_steps():
    marked, plain = pair()
    agrees(gimli.meta_gradient(**marked, compile=True), gimli.meta_gradient(**plain), 1e-10)


def test_batches_are_asked_for_as_often_as_without():
    counts = []
    for made in pair():
        calls, batches = [], made["train_batches"]

        def batch(j: int, calls: list[int] = calls, batches: list[Any] = batches) -> Any:
            calls.append(j)
            return batches[j]

        gimli.meta_gradient(**{**made, "train_batches": batch, "steps": J}, memory=Checkpoint(1), check=False)
        counts.append(len(calls))
    assert counts[0] <= counts[1] + 1


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (torch.tensor([0, 1, N]), r"numbers in \[0, 7\); got 0 to 7"),
        (torch.tensor([-1, 1, 2]), r"numbers in \[0, 7\); got -1 to 2"),
        (torch.tensor([0.0, 1.0, 2.0]), "whole numbers"),
        (torch.tensor([0, 1, 2], dtype=torch.complex64), "whole numbers"),
        (torch.tensor([0, 1, 2]).to_sparse(), r"a dense tensor of whole numbers, \[n\]; got .* torch.sparse_coo"),
        ([0, 1, 2], "whole numbers"),
        (None, "a batch that has them under 'rows'"),
    ],
)
def test_bad_rows_are_refused_before_any_work(rows, match):
    marked, _ = pair()
    bad = {**marked["train_batches"][3], "rows": rows}
    if rows is None:
        del bad["rows"]
    called = []

    def noted(theta: Any, phi: Any, batch: Any) -> Tensor:
        called.append(None)
        return weighted(theta, phi, batch)

    problem = gimli.Problem(noted, val_loss, Adam())
    with pytest.raises(ArgumentError, match=f"at inner step j = 3: expected .*{match}"):
        gimli.meta_gradient(**{**marked, "problem": problem, "train_batches": [*marked["train_batches"][:3], bad]})
    assert not called


def test_rows_without_values_from_a_function():
    marked, _ = pair()
    batch = {**marked["train_batches"][0], "rows": torch.zeros(3, dtype=torch.long, device="meta")}
    with pytest.raises(ArgumentError, match="at inner step j = 0: expected a tensor that holds values"):
        gimli.meta_gradient(**{**marked, "train_batches": lambda j: batch, "steps": 1})


def test_a_val_loss_that_asks_for_an_indexed_entry_is_told():
    marked, _ = pair(lambda theta, phi, batch: phi["of_each"].sum() * theta["w"].sum())
    with pytest.raises(
        ArgumentError, match="leave indexed entries alone: it has no rows; got one that asks for 'of_each'"
    ):
        gimli.meta_gradient(**marked)


def test_bad_marks():
    for value in (torch.tensor(1.0), [1.0, 2.0]):
        with pytest.raises(ArgumentError, match=r"indexed\(value\)"):
            gimli.indexed(value)
    with pytest.raises(ArgumentError, match=r"indexed\(rows\)"):
        gimli.indexed(torch.ones(2), rows=None)


def test_second_derivatives_are_refused_by_name():
    marked, plain = pair()
    theta = {"w": marked["theta_0"]["w"].clone().requires_grad_()}
    with pytest.raises(ArgumentError, match="phi_loss: expected no such phi_loss beside derivatives=2"):
        gimli.unroll(**{**marked, "theta_0": theta}, derivatives=2)
    with pytest.raises(ArgumentError, match="micro_batches: expected no such micro_batches beside derivatives=2"):
        gimli.unroll(**{**plain, "theta_0": theta}, derivatives=2, micro_batches=3)
