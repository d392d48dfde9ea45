"""Work that a model puts off until backward reads the weights of its own call, and gives the numbers of work at once.

Each module has a switch. With `later` it recomputes in backward, or has hooks and functions that read `self.w` there;
without, it keeps what it computes, and hooks hold the weight that stood when they were made.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import gimli_core.inner_loop as inner_loop
from gimli_core.errors import ArgumentError, ClosedError

STEPS, WIDTH, ROUNDING = 3, 4, 1e-12
plainly = lambda function, *args: function(*args)  # noqa: E731
without_reentry = functools.partial(checkpoint, use_reentrant=False)
with_reentry = functools.partial(checkpoint, use_reentrant=True)


class Later(nn.Module):
    later = False

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.0, WIDTH))
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def put_off(self, function: Any, *args: Any) -> Any:
        return (without_reentry if self.later else plainly)(function, *args)


class OfAttributes(Later):
    def forward(self, x: Tensor) -> Tensor:
        return self.put_off(lambda x: torch.tanh(self.w * self.inner(x)), x)


class Nested(Later):
    def forward(self, x: Tensor) -> Tensor:
        within = lambda x: torch.tanh(self.put_off(lambda y: self.inner(y).sin(), x) * self.w)  # noqa: E731
        return self.put_off(lambda x: within(self.outer(x).tanh()), x)


class Aliases(Later):
    def __init__(self) -> None:
        super().__init__()
        self.held = (self.w, [self.inner.bias])

    def forward(self, x: Tensor) -> Tensor:
        return self.put_off(lambda x: torch.tanh(self.held[0] * x + self.held[1][0]).square(), x)


class Dropout(Later):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.put_off(lambda x: self.drop(torch.tanh(self.inner(x))).exp(), x)


class Recurrent(Later):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.put_off(lambda x: self.rnn(x[None])[0][0].sin(), x)


class Buffers(Later):
    """BatchNorm counts each batch once; spectral_norm reads what it then changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.bounded = nn.BatchNorm1d(WIDTH), parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.put_off(lambda x: self.norm(self.bounded(self.inner(x).tanh()).sin()), x)


class DifferentiatesItself(Later):
    """Forces: the gradient of an energy with respect to the input, whose layers are put off themselves."""

    def forward(self, x: Tensor) -> Tensor:
        def force(x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                energy = self.put_off(lambda x: torch.tanh(self.inner(x)) * self.w, x).square().sum()
                return torch.autograd.grad(energy, x, create_graph=True)[0]

        return force(x)


class Attention(Later):
    """Layers in a list, a function set from outside, positional arguments: as large language models are written."""

    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        layer = functools.partial(nn.TransformerEncoderLayer, WIDTH, 2, 8, dropout=0.0, batch_first=True)
        self.layers = nn.ModuleList([layer() for _ in range(2)])
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)[None]
        for layer in self.layers:
            kind = with_reentry if self.reentrant else without_reentry
            x = kind(layer.__call__, x) if self.later else layer(x)
        return x[0]


class ReentrantAttention(Attention):
    reentrant = True


class Reentrant(Later):
    """Of everything, the first layer too, so that no input requires grad."""

    def forward(self, x: Tensor) -> Tensor:
        both = lambda x: torch.tanh(self.outer(torch.tanh(self.inner(x) * self.w)))  # noqa: E731
        return with_reentry(both, x) if self.later else both(x)


class ReentrantLeaf(Reentrant):
    """With an input that requires grad, where torch says nothing and reaches no weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach().requires_grad_())


class InSegments(Later):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self.stack, 2, x, use_reentrant=False) if self.later else self.stack(x)


class TensorHook(Later):
    def forward(self, x: Tensor) -> Tensor:
        hidden, now = torch.tanh(self.inner(x)), self.w
        hidden.register_hook(lambda g: g * (self.w if self.later else now).square())
        return hidden.square()


class BackwardHook(Later):
    def __init__(self) -> None:
        super().__init__()
        self.now: list[Tensor] = []
        self.inner.register_full_backward_hook(self.change)

    def change(self, module: nn.Module, into: Any, out: Any) -> Any:
        return ((into[0] * next(iter(module._parameters.values())).square().sum()),)

    def forward(self, x: Tensor) -> Tensor:
        if self.later:
            return self.inner(torch.tanh(x * self.w)).square()
        hidden, now = torch.tanh(x * self.w), self.inner.weight
        copied = hidden * 1
        if copied.requires_grad:
            copied.register_hook(lambda g: g * now.square().sum())
        return (copied @ self.inner.weight.T + self.inner.bias).square()


class OwnFunction(Later):
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, module: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.module = module
            ctx.save_for_backward(x)
            return x * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return None, g * ctx.module.w, g * ctx.saved_tensors[0]

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        return (self.Product.apply(self, hidden, self.w) if self.later else hidden * self.w).square()


MODULES: list[type[Later]] = [
    OfAttributes,
    Nested,
    Aliases,
    Dropout,
    Recurrent,
    Buffers,
    DifferentiatesItself,
    Attention,
    ReentrantAttention,
    Reentrant,
    ReentrantLeaf,
    InSegments,
    TensorHook,
    BackwardHook,
    OwnFunction,
]
Call = Callable[..., Tensor]


def numbers(
    kind: type[Later], later: bool, call: Call = lambda f, x: f(x), *, after: bool = False, evaluate: bool = False
) -> list[Tensor]:
    """The outer loss, its gradient, the last fast weights and buffers."""
    torch.manual_seed(2)
    module, x = kind(), torch.randn(5, WIDTH)
    module.later = later
    opt = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    leaves = list(module.parameters())
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for j in range(STEPS):
            diffopt.step((call(fmodel, x + j) - 1).square().mean())
        if evaluate:
            fmodel.eval()
        loss = call(fmodel, x).square().mean()
        if not after:
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        fast = [p.detach() for p in fmodel.parameters()]
    if after:
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]
    return [loss.detach(), *gradients, *fast, *fmodel.buffers()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    assert max(float(g.abs().max()) for g in expected) > 1e-3


@pytest.mark.parametrize("kind", MODULES, ids=lambda k: k.__name__)
def test_what_is_put_off_gives_the_same_numbers(kind: type[Later]) -> None:
    assert_same(numbers(kind, later=True), numbers(kind, later=False))


@pytest.mark.parametrize("kind", [k for k in MODULES if "Hook" not in k.__name__], ids=lambda k: k.__name__)
def test_also_where_the_model_was_put_into_eval_mode_since(kind: type[Later]) -> None:
    assert_same(numbers(kind, later=True, evaluate=True), numbers(kind, later=False, evaluate=True))


RECOMPUTED = [k for k in MODULES if k not in (TensorHook, BackwardHook, OwnFunction)]


@pytest.mark.parametrize("kind", RECOMPUTED, ids=lambda k: k.__name__)
def test_also_after_the_end_of_the_context(kind: type[Later]) -> None:
    assert_same(numbers(kind, later=True, after=True), numbers(kind, later=False))


def test_what_cannot_be_known_after_the_end_is_refused() -> None:
    with pytest.raises(ClosedError, match=r"only the latest are kept.*inside the `with` block"):
        numbers(OwnFunction, later=True, after=True)


def test_what_cannot_be_known_of_untracked_steps_is_refused() -> None:
    module, x = OwnFunction(), torch.ones(2, WIDTH)
    module.later = True
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    with inner_loop.innerloop_ctx(module, opt, track_higher_grads=False) as (fmodel, diffopt):
        diffopt.step(fmodel(x).square().mean())
        early = fmodel(x).square().mean()
        diffopt.step(fmodel(x).square().mean())
        with pytest.raises(ClosedError, match="track_higher_grads=False only the latest are kept"):
            early.backward()
        fmodel(x).square().mean().backward()


def test_weights_from_two_threads_cannot_be_told_apart_in_backward() -> None:
    module, x = OwnFunction(), torch.ones(2, WIDTH)
    module.later = True
    fmodel = inner_loop.monkeypatch(module)
    early = fmodel(x).square().mean()
    thread = threading.Thread(target=lambda: fmodel.update_params([p + 1 for p in fmodel.parameters()]))
    thread.start()
    thread.join()
    fmodel.update_params([p + 1 for p in fmodel.parameters()])
    with pytest.raises(ArgumentError, match=r"made in one thread.*fmodel of its own"):
        early.backward()


AROUND: dict[str, Call] = {
    "fmodel": lambda f, x: without_reentry(f, x),
    "with params": lambda f, x: without_reentry(lambda x, *p: f(x, params=p), x, *f.parameters()),
    "a submodule": lambda f, x: without_reentry(lambda x: torch.tanh(f.inner(x)) * f.w, x),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_checkpoint_around_the_functional_module(name: str) -> None:
    plain: Call = (lambda f, x: torch.tanh(f.inner(x)) * f.w) if name == "a submodule" else lambda f, x: f(x)
    assert_same(numbers(OfAttributes, False, AROUND[name]), numbers(OfAttributes, False, plain))


def test_an_inner_loop_inside_a_backward_pass_is_its_own() -> None:
    module, x = OfAttributes(), torch.ones(2, WIDTH)

    def loop() -> Tensor:
        opt = torch.optim.SGD(module.parameters(), lr=0.1)
        with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
            for _ in range(STEPS):
                diffopt.step(fmodel(x).square().sum())
            return fmodel(x).square().sum().detach()

    class Looping(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            with torch.enable_grad():
                return g * loop()

    start = torch.ones((), requires_grad=True)
    Looping.apply(start).backward()
    assert start.grad is not None
    torch.testing.assert_close(start.grad, loop(), rtol=0, atol=0)


def test_torch_is_left_as_it_was() -> None:
    hooks, reentrant = torch.autograd.graph.saved_tensors_hooks.__enter__, torch.utils.checkpoint.CheckpointFunction
    numbers(ReentrantAttention, later=True)

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError

    with pytest.raises(KeyError):
        inner_loop.monkeypatch(Failing())(1)
    assert torch.autograd.graph.saved_tensors_hooks.__enter__ is hooks
    assert torch.utils.checkpoint.CheckpointFunction is reentrant


def test_hooks_that_hold_no_module_leave_nothing_behind() -> None:
    class Offloaded(Later):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.detach().clone(), lambda kept: kept):
                return torch.tanh(self.inner(x))

    def run() -> None:
        module, x = Offloaded(), torch.ones(2, WIDTH)
        fmodel = inner_loop.monkeypatch(module)
        opt = torch.optim.SGD(module.parameters(), lr=0.1)
        diffopt = inner_loop.get_diff_optim(opt, module.parameters(), fmodel=fmodel)
        for _ in range(STEPS):
            diffopt.step(fmodel(x).square().sum())

    run()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(5):
            run()
        left = sum(type(thing).__name__ == "_StepBackward" for thing in gc.get_objects())
        assert left == 0
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()
