"""A batch in parts: the sum over them is the step of the whole batch, in the memory of one part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, StoreStates
from gimli_core.memory.meters import LiveBytes
from gimli_core.optimizers import SGD, Adam, AdamW
from tests.compare import agree, assert_same, said
from tests.problems import every_schedule, tanh_loss, tanh_network

Call = dict[str, Any]


def whole(optimizer: Any = None, **more: Any) -> Call:
    torch.manual_seed(3)
    return tanh_network(optimizer or Adam(), phi_opt={"lr": torch.tensor(0.1)}, **more)


def parted(call: Call, sizes: list[int], weights: Any = None, dim: int = 0) -> Call:
    """The same call with each batch cut by hand."""

    def cut(batch: tuple[Tensor, Tensor]) -> gimli.MicroBatches:
        return gimli.MicroBatches(list(zip(*(x.split(sizes, dim) for x in batch), strict=True)), weights)

    return {**call, "train_batches": [cut(batch) for batch in call["train_batches"]]}


OPTIONS: dict[str, Call] = {
    "adam": {},
    "losses along the way": {"val_weights": [0.1, 0.0, 0.5, 1.0]},
    "first order": {"approximation": gimli.FirstOrder()},
    "truncated": {"approximation": gimli.Truncated(2)},
    "forward over reverse": {"second_order": "forward_over_reverse"},
    "reverse over forward": {"second_order": "reverse_over_forward"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parts_are_the_whole(option):
    call = whole(**OPTIONS[option])
    expected = gimli.meta_gradient(**call)
    for sizes in ([6], [2, 2, 2], [1, 5]):
        agree(gimli.meta_gradient(**parted(call, sizes)), expected, rtol=1e-11)
    agree(gimli.meta_gradient(**call, micro_batches=4), expected, rtol=1e-11)


@every_schedule
def test_every_schedule_has_the_same_bits(memory):
    call = parted(whole(AdamW(amsgrad=True), val_weights=[0.1, 0.0, 0.5, 1.0]), [2, 4])
    assert_same(gimli.meta_gradient(**call, memory=memory), gimli.meta_gradient(**call))


def test_tasks_and_outer_losses():
    losses = gimli.Problem(tanh_loss, lambda t, p, b: torch.stack([tanh_loss(t, p, b), 2 * t["c"]]), Adam())
    for tasks in (3, gimli.Tasks(3, chunk=2)):
        call = {**whole(tasks=3), "problem": losses, "tasks": tasks}
        expected = gimli.meta_gradient(**call)
        assert expected.val_loss.shape == (2,)
        agree(gimli.meta_gradient(**call, micro_batches=3), expected, rtol=1e-11)
        agree(gimli.meta_gradient(**parted(call, [1, 5], dim=1)), expected, rtol=1e-11)


def test_a_loss_that_is_a_sum_and_one_with_a_denominator_of_its_own():
    def summed(theta: Any, phi: Any, batch: Any) -> Tensor:
        return 6 * (tanh_loss(theta, {"l2": phi["l2"] - 30}, batch)) * len(batch[1]) / 6

    def labelled(theta: Any, phi: Any, batch: Any) -> Tensor:
        keep = (batch[1] > 0).to(batch[1])
        fit = torch.tanh(batch[0] @ theta["w"]) @ theta["v"] + theta["c"] - batch[1]
        return (keep * fit.square()).sum() / keep.sum() + phi["l2"].exp() * theta["w"].square().sum()

    call = whole()
    for loss in (summed, labelled):
        problem = gimli.Problem(loss, tanh_loss, SGD())
        expected = gimli.meta_gradient(**{**call, "problem": problem}, check=False)
        counts = [[(y[:2] > 0).sum().item(), (y[2:] > 0).sum().item()] for _, y in call["train_batches"]]
        assert all(min(c) > 0 for c in counts)
        weights = [[1, 1] if loss is summed else [c / sum(cs) for c in cs] for cs in counts]
        batches = [
            parted({**call, "train_batches": [b]}, [2, 4], w)["train_batches"][0]
            for b, w in zip(call["train_batches"], weights, strict=True)
        ]
        agree(gimli.meta_gradient(**{**call, "problem": problem, "train_batches": batches}), expected, rtol=1e-10)


@pytest.mark.parametrize("memory", [RetainGraphs(), StoreStates(), Checkpoint(1, gradients=True)], ids=str)
def test_random_numbers_are_those_of_each_part(memory):
    """Masks are drawn part by part; plain autograd through the same sums is the truth."""

    def masked(theta: Any, phi: Any, batch: Any) -> Tensor:
        return tanh_loss(theta, phi, (batch[0] * (torch.rand(3) < 0.6), batch[1]))

    call = parted({**whole(SGD(momentum=0.9)), "problem": gimli.Problem(masked, tanh_loss, SGD(momentum=0.9))}, [2, 4])
    torch.manual_seed(0)
    report = gimli.verify(**call, memory=memory, oracles=["autograd"])
    assert report.ok, str(report)


def test_verify_judges_parts():
    assert gimli.verify(**whole(), micro_batches=3).ok
    tasks = {**whole(tasks=2), "problem": gimli.Problem(tanh_loss, tanh_loss, Adam())}
    assert gimli.verify(**tasks, micro_batches=2, oracles=["autograd"]).ok


def test_losses_that_take_j_and_return_aux():
    def loss(theta: Any, phi: Any, batch: Any, j: Tensor) -> Any:
        value = tanh_loss(theta, phi, batch) * (1 + j)
        return value, {"rows": len(batch[1])}

    call = {**whole(), "problem": gimli.Problem(loss, tanh_loss, Adam())}
    found = gimli.meta_gradient(**parted(call, [2, 4]))
    assert found.train_aux["rows"].tolist() == [[2, 4]] * 4
    agree(found, gimli.meta_gradient(**call), rtol=1e-11)


def test_unroll_and_step_through():
    call = whole()
    expected = gimli.meta_gradient(**call)
    theta = {n: v.clone().requires_grad_() for n, v in call["theta_0"].items()}
    gimli.unroll(**{**call, "theta_0": theta}, micro_batches=2).backward()
    for n, v in theta.items():
        torch.testing.assert_close(v.grad, expected.B_0[n], rtol=1e-11, atol=1e-13)
    walk = gimli.step_through(**call, micro_batches=2)
    for _ in walk:
        pass
    agree(walk.result, expected, rtol=1e-11)


def test_no_second_graph_lives():
    """The peak of a step is that of one part: activations dominate here."""
    torch.manual_seed(0)
    w = torch.randn(8, 64)

    def loss(theta: Any, phi: Any, batch: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(batch @ theta["w"]) @ theta["w"].t()).square().mean()

    call = {
        "problem": gimli.Problem(loss, loss, SGD(lr=0.1)),
        "theta_0": {"w": w},
        "train_batches": torch.randn(3, 512, 8),
        "val_batch": torch.randn(4, 8),
        "check": False,
    }
    peaks = {}
    for n in (1, 8):
        for memory in (RetainGraphs(), StoreStates()):
            meter = LiveBytes()
            with meter:
                gimli.meta_gradient(**call, memory=memory, micro_batches=n)
            peaks[n, str(memory)] = meter.peak
    assert peaks[8, "RetainGraphs()"] < 0.25 * peaks[1, "StoreStates()"]
    assert peaks[8, "StoreStates()"] < 0.25 * peaks[1, "StoreStates()"]


def test_a_budget_and_a_killed_run(tmp_path):
    call = whole()
    agree(
        gimli.meta_gradient(**call, micro_batches=3, memory=Budget("1GB"), resume=tmp_path / "run"),
        gimli.meta_gradient(**call, micro_batches=3),
        rtol=0,
        atol=0,
    )


def test_it_is_not_compiled_and_says_so(caplog):
    call = whole()
    with caplog.at_level("INFO", "gimli_core"):
        found = gimli.meta_gradient(**call, micro_batches=2, compile=True)
    assert "not compiled: micro-batches are summed one after the other" in said(caplog)
    agree(found, gimli.meta_gradient(**call, micro_batches=2), rtol=0, atol=0)


def test_an_entry_that_only_a_later_part_uses_is_no_idle_one():
    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        rows, x = batch
        return (phi["w"][rows] * (x * theta["a"]).square()).mean()

    problem = gimli.Problem(loss, lambda t, p, b: t["a"].sum(), SGD(lr=0.1))
    batch = gimli.MicroBatches([(torch.tensor([0]), torch.ones(1)), (torch.tensor([1]), torch.ones(1))])
    found = gimli.meta_gradient(problem, {"a": torch.ones(())}, [batch], None, phi_loss={"w": torch.ones(2)})
    assert (found.A_loss["w"] != 0).all()


PARTS = [{"x": torch.ones(2)}, {"x": torch.ones(3)}]


@pytest.mark.parametrize(
    ("parts", "weights", "match"),
    [
        ([], None, "a list of one batch or more; got none"),
        (torch.ones(2, 2), None, "a list of one batch or more; got a Tensor"),
        ([{"x": torch.ones(2)}, {"y": torch.ones(2)}], None, "parts of one structure"),
        ([{"x": torch.ones(2)}, {"x": torch.ones(0)}], None, "part 1, which is empty"),
        (PARTS, [1.0], "2 numbers that sum to 1"),
        (PARTS, [0.5, 0.4], "got 2 with the sum 0.9"),
        (PARTS, [float("nan"), 1.0], "2 numbers that sum to 1"),
        (PARTS, ["a", "b"], "2 numbers that sum to 1"),
    ],
)
def test_bad_parts(parts, weights, match):
    with pytest.raises(ArgumentError, match=match):
        gimli.MicroBatches(parts, weights)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"micro_batches": 0}, "micro_batches: expected a whole number n >= 1"),
        ({"micro_batches": True}, "micro_batches: expected a whole number n >= 1"),
        ({"micro_batches": 7}, "at most one for each example; got 7 of a batch of 6"),
        ({"micro_batches": 2, "train_batches": [torch.ones(())]}, "one number of examples"),
        ({"micro_batches": 2, "train_batches": [gimli.MicroBatches([torch.ones(2)])]}, "Give one of the two"),
        ({"train_batches": [gimli.MicroBatches([(torch.ones(2, 3), torch.ones(3))])]}, "one number of examples"),
    ],
)
def test_bad_calls(more, match):
    with pytest.raises(ArgumentError, match=match):
        gimli.meta_gradient(**{**whole(), **more, **({"steps": 1} if "train_batches" in more else {})})


def test_parts_in_some_steps_only_and_in_val_batch_are_refused():
    call = whole()
    first, *later = call["train_batches"]
    in_part = gimli.MicroBatches([first])
    with pytest.raises(ArgumentError, match=r"from step 0 on, or in no step; got some at step 1\."):
        gimli.meta_gradient(**{**call, "train_batches": [first, in_part, *later[1:]]})
    agree(gimli.meta_gradient(**{**call, "train_batches": [in_part, *later]}), gimli.meta_gradient(**call), rtol=1e-11)
    with pytest.raises(ArgumentError, match="val_batch: expected a batch as val_loss is to get it; got MicroBatches"):
        gimli.meta_gradient(**{**call, "val_batch": gimli.MicroBatches([call["val_batch"]])})


def test_a_loss_that_does_not_decompose_is_refused_before_any_work():
    def spread(theta: Any, phi: Any, batch: Any) -> Tensor:
        return (batch[0] @ theta["w"]).std(0).sum() + phi["l2"] * theta["c"] ** 2

    call = {**whole(), "problem": gimli.Problem(spread, tanh_loss, Adam())}
    with pytest.raises(ArgumentError, match="all parts together"):
        gimli.meta_gradient(**call, micro_batches=2)
    gimli.meta_gradient(**call, micro_batches=2, check=False)
    with pytest.raises(
        ArgumentError, match="all parts together"
    ):  # the mean of halves that count alike is not the mean
        gimli.meta_gradient(**parted(whole(), [1, 5], [0.5, 0.5]))


def test_a_loss_of_parts_alone_is_refused_in_words_of_this_package():
    """One that takes a part of so many examples, and not two of them together."""

    def of_three(theta: Any, phi: Any, batch: Any) -> Tensor:
        return ((batch[0] @ theta["w"]).sum(1) * torch.ones(3)).sum() + phi["l2"] * theta["c"] ** 2

    call = {**whole(), "problem": gimli.Problem(of_three, tanh_loss, Adam())}
    with pytest.raises(ArgumentError, match=r"train_loss on all micro-batches together: .*got RuntimeError: The size"):
        gimli.meta_gradient(**call, micro_batches=2)
    gimli.meta_gradient(**call, micro_batches=2, check=False)


def test_parts_that_hold_an_object_made_anew_are_tried_once():
    class Labels:
        """Without an equality or a printed form of its own."""

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        return ((batch[0] @ theta["w"]) ** 2).mean()

    call = whole()
    made = {**call, "problem": gimli.Problem(loss, lambda theta, phi, batch: loss(theta, phi, batch[0]), Adam())}
    made = {**made, "theta_0": {"w": call["theta_0"]["w"]}, "phi_loss": None, "val_batch": (call["train_batches"][0],)}
    for _ in range(3):
        parts = [(part, Labels()) for part in call["train_batches"][0][0].split(3)]
        gimli.meta_gradient(**{**made, "train_batches": [gimli.MicroBatches(parts, [0.5, 0.5])]})
    assert len(made["problem"].memo.examined) == 1


def test_other_weights_or_sizes_on_a_problem_that_has_run_are_tried_anew():
    call = whole()
    for sizes, weights in (([3, 3], [0.5, 0.5]), ([2, 4], None)):
        gimli.meta_gradient(**parted(call, sizes, weights))
    for sizes, weights in (([2, 4], [0.5, 0.5]), ([3, 3], [0.25, 0.75])):
        with pytest.raises(ArgumentError, match="all parts together"):
            gimli.meta_gradient(**parted(call, sizes, weights))
        with pytest.raises(ArgumentError, match="all parts together"):
            gimli.unroll(**parted(call, sizes, weights))


@pytest.mark.parametrize("inside", ["autograd", "torch.func"])
def test_a_loss_that_differentiates_inside_is_tried_as_well(inside: str):
    def at(w: Tensor, batch: Any) -> Tensor:
        return (torch.tanh(batch[0] @ w) ** 2).sum()

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        if inside == "torch.func":
            slope = torch.func.grad(at)(theta["w"], batch)
        else:
            (slope,) = torch.autograd.grad(at(theta["w"], batch), theta["w"], create_graph=True)
        return tanh_loss(theta, phi, batch) + (slope * theta["w"]).sum() / len(batch[0])

    call = {**whole(), "problem": gimli.Problem(loss, tanh_loss, Adam())}
    agree(gimli.meta_gradient(**call, micro_batches=2), gimli.meta_gradient(**call), rtol=1e-11)
    untried = {**call, "problem": gimli.Problem(loss, tanh_loss, Adam())}
    with pytest.raises(ArgumentError, match="all parts together"):
        gimli.meta_gradient(**parted(untried, [1, 5], [0.5, 0.5]))


def test_statistics_of_batch_norm_are_refused():
    norm = nn.BatchNorm1d(3, affine=False)

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        return tanh_loss(theta, phi, (norm(batch[0]), batch[1]))

    call = {**whole(), "problem": gimli.Problem(loss, tanh_loss, Adam())}
    with pytest.raises(ArgumentError, match="running statistics"):
        gimli.meta_gradient(**call, micro_batches=2)
    norm.eval()
    agree(gimli.meta_gradient(**call, micro_batches=2), gimli.meta_gradient(**call), rtol=1e-11)
