"""Copies of a functional module, modules that were compiled, threads that share one, and names that scripts rely on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core.inner_loop as inner_loop
from gimli_core.errors import ArgumentError

X = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)
        self.held = [self.head.bias]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) + self.held[0]


def stepped(module: nn.Module, steps: int = 2, **options: Any) -> Any:
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    fmodel = inner_loop.monkeypatch(module, **options)
    diffopt = inner_loop.get_diff_optim(opt, module.parameters(), fmodel=fmodel)
    for _ in range(steps):
        diffopt.step(fmodel(X).square().mean())
    return fmodel


def test_a_deep_copy_has_weights_of_its_own() -> None:
    module = Net()
    module.head.weight.requires_grad_(False)
    fmodel = stepped(module, copy_initial_weights=False)
    copied = copy.deepcopy(fmodel)
    assert type(copied) is type(fmodel)
    for mine, its in zip(copied.parameters(), fmodel.parameters(), strict=True):
        assert mine.is_leaf
        assert mine.requires_grad == its.requires_grad
        assert torch.equal(mine, its)
    before = [t.detach().clone() for t in [*fmodel.parameters(), *fmodel.buffers()]]
    loss = copied.eval()(X).square().mean()
    torch.testing.assert_close(loss, copy.deepcopy(fmodel).eval()(X).square().mean(), rtol=0, atol=0)
    trained = [p for p in copied.parameters() if p.requires_grad]
    assert all(bool(g.any()) for g in torch.autograd.grad(loss, trained))
    assert all(p.grad is None for p in module.parameters())
    copied.update_params([p + 1 for p in copied.parameters()])
    copied.train()(X)
    assert copied.held[0] is copied.head.bias
    for now, then in zip([*fmodel.parameters(), *fmodel.buffers()], before, strict=True):
        assert torch.equal(now, then)
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    inner_loop.get_diff_optim(opt, module.parameters(), fmodel=copied).step(copied(X).square().mean())


def test_a_deep_copy_of_a_submodule_is_an_ordinary_module() -> None:
    fmodel = stepped(Net())
    body = copy.deepcopy(fmodel.body)
    assert torch.equal(body[0].weight, fmodel.body[0].weight)
    assert all(p.is_leaf for p in body.parameters())
    holder = copy.deepcopy([fmodel, fmodel.body])
    assert holder[1] is not fmodel.body


def of_outer(module: nn.Module, called: Callable[[Any], Tensor] = lambda f: f(X)) -> list[Tensor]:
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step(called(fmodel).square().mean())
        return list(torch.autograd.grad(called(fmodel).square().mean(), list(module.parameters())))


def whole(module: Net) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def a_part(module: Net) -> nn.Module:
    module.body[0] = torch.compile(module.body[0], backend="eager")
    return module


def in_place(module: Net) -> nn.Module:
    module.body.compile(backend="eager")
    module.compile(backend="eager")
    return module


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("compiled", [whole, a_part, in_place])
def test_a_compiled_module_computes_with_the_fast_weights(compiled: Callable[[Net], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = of_outer(Net())
    torch.manual_seed(0)
    for a, b in zip(of_outer(compiled(Net())), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Slow(Net):
    """Lets another thread in while it computes."""

    def __init__(self, entered: threading.Event, go_on: threading.Event) -> None:
        super().__init__()
        self.events = (entered, go_on)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        self.events[0].set()
        assert self.events[1].wait(10)
        return self.head(hidden)


@pytest.mark.parametrize("how", ["a call with params", "update_params", "a step"])
def test_weights_are_not_exchanged_under_a_thread_that_computes_with_them(how: str) -> None:
    entered, go_on = threading.Event(), threading.Event()
    module = Slow(entered, go_on)
    go_on.set()
    expected = inner_loop.monkeypatch(module)(X).detach()
    fmodel = inner_loop.monkeypatch(module)
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    diffopt = inner_loop.get_diff_optim(opt, module.parameters(), fmodel=fmodel)
    params = [p + 1 for p in fmodel.parameters()]
    loss = fmodel(X).square().mean()
    entered.clear()
    go_on.clear()
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(fmodel.eval().train()(X).detach()))
    thread.start()
    try:
        assert entered.wait(10)
        with pytest.raises(ArgumentError, match=r"one thread while another is inside a call.*fmodel of its own"):
            {
                "a call with params": lambda: fmodel(X, params=params),
                "update_params": lambda: fmodel.update_params(params),
                "a step": lambda: diffopt.step(loss),
            }[how]()
    finally:
        go_on.set()
        thread.join()
    assert torch.equal(found[0], expected)
    fmodel.update_params(params)  # afterwards it may


def test_each_thread_with_a_functional_module_of_its_own() -> None:
    module = Net()
    expected, found = of_outer(module), [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda held=held: held.extend(of_outer(module))) for held in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for held in found:
        for a, b in zip(held, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.backends.cuda.flash_sdp_enabled(), "a choice of kernels was left behind"


def test_untracked_steps_leave_no_way_back_to_the_module() -> None:
    module = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1), "free": nn.Linear(3, 1)})
    opt = torch.optim.SGD([*module["used"].parameters(), *module["unused"].parameters()], lr=0.1)
    options = {"copy_initial_weights": False, "track_higher_grads": False}
    with inner_loop.innerloop_ctx(module, opt, **options) as (fmodel, diffopt):
        diffopt.step(fmodel["used"](X).sum())
        sum(p.sum() for p in fmodel.parameters()).backward()
        assert all(p.is_leaf and p.requires_grad for p in fmodel.parameters())
    assert all(p.grad is None for p in module.parameters())


def test_helpers_that_scripts_take_from_utils() -> None:
    assert inner_loop.utils.flatten([{"a": (1, [2])}, {3}, 4]) == [1, 2, 3, 4]
    module = Net()
    module.head.bias.requires_grad_(False)
    for safe in (True, False):
        params = inner_loop.utils.get_func_params(module, safe_copy=safe)
        for mine, its in zip(params, module.parameters(), strict=True):
            assert mine.is_leaf
            assert mine.requires_grad == its.requires_grad
            assert (mine.data_ptr() == its.data_ptr()) != safe
    fmodel = inner_loop.patch.make_functional(module, lambda copied, original: copied.update_params(params))
    module(X)
    assert not torch.equal(fmodel.body[2].running_mean, module.body[2].running_mean)
    inner_loop.patch.buffer_sync(module, fmodel)
    assert torch.equal(fmodel.body[2].running_mean, module.body[2].running_mean)
    module(X)
    assert not torch.equal(fmodel.body[2].running_mean, module.body[2].running_mean)
    with pytest.raises(ArgumentError, match="'body'"):
        inner_loop.patch.buffer_sync(module, nn.Linear(1, 1))


KINDS = ["SGD", "Adam", "AdamW", "Adadelta", "Adagrad", "Adamax", "ASGD", "RMSprop", "Rprop"]


@pytest.mark.parametrize("name", KINDS)
def test_a_differentiable_optimizer_by_its_old_name(name: str) -> None:
    kind = getattr(torch.optim, name)
    renamed = type(f"My{name}", (kind,), {})
    inner_loop.register_optim(renamed, getattr(inner_loop.optim, f"Differentiable{name}"))
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    results = []
    for each in (kind, renamed):
        opt = each(module.parameters(), lr=0.01)
        with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(fmodel(X).square().sum())
            results.append([p.detach() for p in fmodel.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, module.weight if a.ndim > 1 else module.bias)
