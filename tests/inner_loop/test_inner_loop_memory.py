"""What the imperative inner loop holds, and that it lets all of it go.

Tensors and the graph's nodes are counted, with the cycle collector switched off: what waits for it is not released.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core.inner_loop as inner_loop


@pytest.fixture(autouse=True)
def only_reference_counting() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what other tests of this process have left is not looked at
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def nodes() -> int:
    """The steps in graphs that are still alive; they hold tensors that Python does not see."""
    return sum(type(thing).__name__ == "_StepBackward" for thing in gc.get_objects())


def storage_bytes() -> int:
    """What the live tensors that Python can see keep in memory, each storage once."""
    seen = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            storage = thing.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8))
        self.rnn = nn.LSTM(8, 4)
        self.twice = [self.body[0].weight]  # an alias of a parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.body(x)[None])[0].sum(-1) + self.twice[0].sum()


def loop(module: nn.Module, opt: Any, x: Tensor, steps: int = 3, **options: Any) -> tuple[Any, Any]:
    with inner_loop.innerloop_ctx(module, opt, **options) as (fmodel, diffopt):
        for _ in range(steps):
            diffopt.step(fmodel(x).square().mean())
        loss = fmodel(x).square().mean()
        if options.get("track_higher_grads", True):
            loss.backward()
    return fmodel, diffopt


@pytest.mark.parametrize("options", [{}, {"copy_initial_weights": False}, {"track_higher_grads": False}], ids=str)
def test_nothing_is_left_after_a_hundred_loops(options: dict[str, Any]) -> None:
    module, x = Net(), torch.randn(6, 3)
    lr = torch.tensor(0.01, requires_grad=True)
    opt = torch.optim.Adam(module.parameters(), lr=0.01)
    held = loop(module, opt, x, override={"lr": [lr]}, **options)  # fills .grad once
    del held
    before = tensors()
    for _ in range(100):
        loop(module, opt, x, override={"lr": [lr]}, **options)
    assert tensors() == before
    assert nodes() == 0


def test_what_is_still_in_hand_holds_no_graph() -> None:
    module, x = Net(), torch.randn(6, 3)
    opt = torch.optim.Adam(module.parameters(), lr=0.01)
    loop(module, opt, x)
    before = tensors()
    kept = [loop(module, opt, x, steps=steps) for steps in (1, 20)]
    assert nodes() == 0
    fmodel, _ = kept[0]
    each = len(list(fmodel.parameters())) + len(list(fmodel.buffers()))
    assert tensors() - before <= 2 * each, "more is held than the latest values, once, and the buffers"
    assert all(p.grad_fn is None for fmodel, _ in kept for p in fmodel.parameters())
    assert all(p.grad_fn is None for fmodel, _ in kept for p in [*fmodel.rnn._flat_weights, *fmodel.twice])


def test_an_outer_loss_in_hand_keeps_what_it_needs_and_no_more() -> None:
    module, x = Net(), torch.randn(6, 3)
    opt = torch.optim.SGD(module.parameters(), lr=0.01)
    before = tensors()
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(fmodel(x).square().mean())
        loss = fmodel(x).square().mean()
    del fmodel, diffopt
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    gradients = len(list(module.parameters()))
    assert nodes() == 1
    del loss
    assert nodes() == 0
    assert tensors() <= before + gradients


def test_without_a_context_it_goes_with_its_last_name() -> None:
    module, x = Net(), torch.randn(6, 3)
    opt = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    before = tensors()
    for _ in range(10):
        fmodel = inner_loop.monkeypatch(module)
        diffopt = inner_loop.get_diff_optim(opt, module.parameters(), fmodel=fmodel)
        for _ in range(3):
            diffopt.step(fmodel(x).square().mean())
        assert nodes() == 3
        del fmodel, diffopt
    assert tensors() == before
    assert nodes() == 0


def test_untracked_steps_keep_only_the_latest_fast_weights() -> None:
    module, x = Net(), torch.randn(6, 3)
    opt = torch.optim.Adam(module.parameters(), lr=0.01)
    held = []
    with inner_loop.innerloop_ctx(module, opt, track_higher_grads=False) as (fmodel, diffopt):
        for _ in range(6):
            diffopt.step(fmodel(x).square().mean())
            held.append(storage_bytes())
    assert held[2] == held[-1]


def test_a_step_keeps_no_graph_through_the_optimizer() -> None:
    """Of Adam's work one node is kept, not the dozen operations it consists of."""
    w = torch.ones(4, requires_grad=True)
    diffopt = inner_loop.get_diff_optim(torch.optim.Adam([w]), [w])
    (w_1,) = diffopt.step(w.pow(3).sum(), params=[w])
    node = w_1.grad_fn
    assert node is not None
    assert node.name() == "_StepBackward"
    # theta, G, two moments and nothing else go in: theta is a leaf, the moments are constants
    sources = [source for source, _ in node.next_functions if source is not None]
    assert [source.name() for source in sources].count("torch::autograd::AccumulateGrad") == 1
    assert len(sources) == 2
