"""What is tried before a run leaves no trace: the run has the numbers, and the calls, of one that is not checked."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.attributes import attributes_of
from gimli_core.environment import Environment
from gimli_core.errors import ArgumentError, ReplayError
from gimli_core.memory.meters import LiveBytes
from gimli_core.optimizers import SGD

Tensors = dict[str, Tensor]


class Keeping(nn.Module):
    """Its output is divided by what it has kept of its calls, in the way that `keep` says."""

    def __init__(self, keep: str) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)
        self.keep = keep
        self.inner = nn.Identity()
        self.inner.count = 0
        self.items: list[int] = []
        self.queue: deque[int] = deque(maxlen=8)
        self.table = {"calls": torch.zeros(())}
        self.hidden = torch.zeros(())

    def kept(self) -> Any:
        return {
            "number of a submodule": self.inner.count,
            "list": len(self.items),
            "deque": len(self.queue),
            "new tensor": self.hidden,
            "tensor in place": self.hidden,
            "tensor in place, through data": self.hidden,
            "tensor in a dict": self.table["calls"],
            "new attribute": getattr(self, "late", 0),
        }[self.keep]

    def forward(self, x: Tensor) -> Tensor:
        match self.keep:
            case "number of a submodule":
                self.inner.count += 1
            case "list":
                self.items.append(0)
            case "deque":
                self.queue.append(0)
            case "new tensor":
                self.hidden = self.hidden + 1
            case "tensor in place":
                self.hidden += 1
            case "tensor in place, through data":
                self.hidden.data += 1
            case "tensor in a dict":
                self.table["calls"] += 1
            case "new attribute":
                self.late = getattr(self, "late", 0) + 1
        return self.layer(x) / float(self.kept())


KEPT = [
    "number of a submodule",
    "list",
    "deque",
    "new tensor",
    "tensor in place",
    "tensor in place, through data",
    "tensor in a dict",
    "new attribute",
]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("keep", KEPT)
def test_what_a_module_keeps_starts_as_it_was(keep: str, check: bool) -> None:
    """theta_2 = 1 - 0.1 - 0.1/2, with two calls, the first time and the second."""
    net = Keeping(keep)

    def train_loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return functional_call(net, theta, (batch,)).sum()

    problem = gimli.Problem(train_loss, lambda t, p, b: t["layer.weight"].sum() ** 2, SGD(lr=0.1))
    start = attributes_of([net])
    for _ in range(2):
        start()
        theta_0 = {k: v.detach().clone() for k, v in net.named_parameters()}
        result = gimli.meta_gradient(problem, theta_0, [torch.ones(1)] * 2, None, check=check)
        assert result.theta_J["layer.weight"].item() == pytest.approx(0.85)
        assert int(net.kept()) == 2


def test_a_carried_state_is_still_refused_where_steps_are_replayed() -> None:
    net = Keeping("number of a submodule")
    problem = gimli.Problem(
        lambda t, p, b: functional_call(net, t, (b,)).square().sum(),
        lambda t, p, b: t["layer.weight"].sum(),
        SGD(lr=0.1),
    )
    args = problem, dict(net.named_parameters()), [torch.ones(1)] * 2, None
    with pytest.raises(ReplayError, match="the same value twice"):
        gimli.meta_gradient(*args, memory=gimli.memory.StoreStates())
    assert net.kept() == 0


def test_attributes_are_put_back_as_the_same_objects() -> None:
    net = nn.Module()
    net.tensor, net.items, net.grown = torch.ones(2), [1, {"a": {2}}], torch.ones(2)
    tensor, items, inner = net.tensor, net.items, net.items[1]["a"]
    restore = attributes_of([net])
    net.tensor.add_(1)
    net.tensor = torch.zeros(3)
    net.grown.resize_(5)
    inner.add(3)
    net.items[1].clear()
    net.items = []
    net.eval()
    restore()
    assert net.tensor is tensor
    assert torch.equal(tensor, torch.ones(2))
    assert torch.equal(net.grown, torch.ones(2))
    assert net.items is items
    assert items[1]["a"] is inner
    assert items == [1, {"a": {2}}]
    assert net.training


def test_what_has_not_moved_is_not_written_to() -> None:
    """Not even where it could not be: a tensor whose elements share memory."""
    net = nn.Module()
    net.wide = torch.ones(1).expand(3)
    with Environment([net], torch.device("cpu")).trial():
        pass
    assert torch.equal(net.wide, torch.ones(3))


@pytest.mark.parametrize("which", ["theta", "frozen", "phi"])
def test_a_write_through_data_does_not_reach_the_callers_tensors(which: str) -> None:
    theta_0 = {"w": torch.ones(2), "f": nn.Parameter(torch.ones(2), requires_grad=False)}
    phi_loss = {"c": torch.ones(2)}

    def writing(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        loss = (theta["w"] * phi["c"] * theta["f"]).square().sum()
        {"theta": theta["w"], "frozen": theta["f"], "phi": phi["c"]}[which].data.mul_(2)
        return loss

    problem = gimli.Problem(writing, writing, SGD(lr=0.1))
    gimli.check_requirements(problem, theta_0, [None], None, phi_loss=phi_loss).assert_ok()
    assert all(torch.equal(t, torch.ones(2)) for t in (*theta_0.values(), *phi_loss.values()))


def halving(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    batch["x"] *= 0.5
    return (theta["w"] * torch.as_tensor(batch["x"])).square().sum()


def reading(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    return (theta["w"] * batch["x"]).square().sum()


@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates()])
@pytest.mark.parametrize("which", ["train_loss", "val_loss"])
def test_a_batch_that_is_changed_in_place_is_refused(which: str, memory: Any) -> None:
    train, val = {"x": torch.ones(2)}, {"x": torch.ones(2)}
    losses = {"train_loss": reading, "val_loss": reading, which: halving}
    problem = gimli.Problem(**losses, optimizer=SGD(lr=0.1))
    with pytest.raises(ArgumentError, match=rf"{which}: expected to leave its batch as it is.*clone"):
        gimli.meta_gradient(problem, {"w": torch.ones(2)}, [train] * 2, val, memory=memory)
    assert torch.equal(train["x"], torch.ones(2))
    assert torch.equal(val["x"], torch.ones(2))


def clamping(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    batch["x"].clamp_(max=1.0)
    return reading(theta, phi, batch)


def there_and_back(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    return reading(theta, phi, {"x": batch["x"].mul_(2).div_(2)})


def anew(x: Tensor) -> Any:
    return lambda j: {"x": x.clone()}


def one_a_step(x: Tensor) -> Any:
    return [{"x": x.clone(), "missing": torch.tensor(torch.nan), "n": j} for j in range(2)]


FINE = {
    "made anew": (halving, anew),
    "the same the second time": (clamping, one_a_step),
    "changed to what it was": (there_and_back, one_a_step),
    "an array that is made anew": (halving, lambda x: lambda j: {"x": x.numpy().copy()}),
}


@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates()])
@pytest.mark.parametrize("case", FINE)
def test_changes_in_place_that_no_one_else_sees_are_taken(case: str, memory: Any) -> None:
    train_loss, batches_of = FINE[case]
    problem = gimli.Problem(train_loss, lambda t, p, b: t["w"].sum() ** 2, SGD(lr=0.1))
    found = []
    for check in (True, False):
        args = problem, {"w": torch.ones(2)}, batches_of(torch.tensor([0.5, 2.0])), None
        found.append(gimli.meta_gradient(*args, steps=2, memory=memory, check=check).B_0["w"])
    assert torch.equal(*found)


@pytest.mark.parametrize("compile", ["steps", "whole"])
def test_a_look_before_compiling_leaves_none(compile: str) -> None:
    """A loss that counts its calls, and returns aux, which is not compiled: the eager run begins as if never tried."""

    def made() -> tuple[nn.Module, gimli.Problem, Tensors]:
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        net.calls = 0  # type: ignore[assignment]

        def loss(theta: Tensors, phi: Any, batch: Tensor) -> Any:
            net.calls += 1  # type: ignore[operator]
            return functional_call(net, theta, batch).sum() / net.calls, {"calls": torch.tensor(float(net.calls))}  # type: ignore[arg-type]

        problem = gimli.Problem(loss, lambda t, p, b: t["weight"].sum() ** 2, SGD(lr=0.1), modules=[net])
        return net, problem, dict(net.named_parameters())

    ends = []
    for how in (compile, False):
        net, problem, theta = made()
        run = gimli.meta_gradient(problem, theta, [torch.ones(1)] * 3, None, compile=how)
        ends.append((run.theta_J["weight"].item(), net.calls))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("compute", ["meta_gradient", "unroll"])
def test_of_a_large_batch_two_copies_are_alive_at_a_time(compute: str) -> None:
    """A budget has to bear them: of four, and of what the comparison of two took besides, one of 16 MiB became 17."""
    batch, rows = torch.randn(1 << 16, 8), 8 * 8 * (1 << 16)  # 4 MiB

    def loss(theta: Tensors, phi: Tensors, x: Tensor) -> Tensor:
        return (x[:16] @ theta["w"]).square().sum()

    problem, memory = gimli.Problem(loss, loss, SGD(lr=0.1)), gimli.memory.Budget("64MiB")
    with LiveBytes() as meter:
        getattr(gimli, compute)(problem, {"w": torch.ones(8)}, lambda j: batch, batch, steps=2, memory=memory)
    assert rows < meter.peak < 2.1 * rows
