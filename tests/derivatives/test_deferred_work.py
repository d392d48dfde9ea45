"""Work that is done when a loss is differentiated, or again in the backward pass, meets what the forward pass met."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import gimli_core as gimli
from gimli_core import inner_loop
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import SGD
from tests.compare import agree

SCHEDULES = [None, gimli.memory.StoreStates(), gimli.memory.Checkpoint(1)]
MEANS = ["reverse_over_reverse", "forward_over_reverse", "reverse_over_forward"]


class Blocks(nn.Module):
    """Two blocks, of which the first is a closure over the module's own parameter; tied weights in the second."""

    def __init__(self, put_off: Callable[..., Any]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-0.5, 0.8, 9, dtype=torch.float64).reshape(3, 3))
        self.first = nn.Linear(3, 3, dtype=torch.float64)
        self.second = nn.Linear(3, 3, dtype=torch.float64)
        self.second.weight = self.first.weight
        with torch.no_grad():
            for scale, p in enumerate(self.first.parameters(), start=1):
                p.copy_(torch.arange(p.numel()).reshape(p.shape).double().cos() / scale)
            self.second.bias.zero_()
        self.put_off = put_off

    def forward(self, x: Tensor) -> Tensor:
        x = self.put_off(lambda x: torch.tanh(x @ self.w), x)
        x = self.put_off(lambda x: self.second(torch.tanh(self.first(x))), x)
        return x.square().mean()


class Reading(torch.autograd.Function):
    """x @ module.w, whose backward reads the module's attribute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, module: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return x @ w

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> Any:
        return arriving @ ctx.module.w.T, ctx.saved_tensors[0].T @ arriving, None


class ReadsInBackward(nn.Module):
    def __init__(self, own: bool) -> None:
        super().__init__()
        self.w, self.own = nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)), own

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.w)
        return (Reading.apply(x, self.w, self) if self.own else x @ self.w).square().mean()


def at_once(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def later(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


NETS = {
    "checkpointed blocks": (lambda: Blocks(at_once), lambda: Blocks(later)),
    "a backward that reads an attribute": (lambda: ReadsInBackward(False), lambda: ReadsInBackward(True)),
}


def result(net: nn.Module, **options: Any) -> Any:
    def loss(theta: Any, phi: Any, batch: Tensor) -> Tensor:
        out: Tensor = functional_call(net, theta, batch)
        return out

    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    problem = gimli.Problem(loss, loss, SGD(lr=0.5, momentum=0.9))
    return gimli.meta_gradient(problem, dict(net.named_parameters()), [x, x + 1, x - 1], x, **options)


@pytest.mark.parametrize("options", [{"memory": m} for m in SCHEDULES] + [{"second_order": m} for m in MEANS], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_work_put_off_meets_the_weights_of_its_step(name: str, options: dict[str, Any]) -> None:
    plain, deferred = (make() for make in NETS[name])
    if name != "checkpointed blocks" and options.get("second_order", "").endswith("forward"):
        pytest.skip("a custom function without a jvp has no forward mode")
    before = [id(p) for p in deferred.parameters()]
    expected, found = result(plain, **options), result(deferred, **options)
    for k, v in expected.B_0.items():
        torch.testing.assert_close(found.B_0[k], v)
    assert [id(p) for p in deferred.parameters()] == before  # the module has its own weights again


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def math_kernel() -> AbstractContextManager[Any]:
    return sdpa_kernel(SDPBackend.MATH)


@pytest.mark.parametrize("memory", SCHEDULES, ids=str)
@pytest.mark.parametrize("mode", [autocast, math_kernel])
def test_modes_of_the_forward_pass_hold_in_the_backward_pass(mode: Any, memory: Any) -> None:
    x = torch.arange(32.0).cos().reshape(1, 4, 8)
    met: list[Any] = []

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        met.append((torch.is_autocast_enabled("cpu"), torch.backends.cuda.math_sdp_enabled()))
        q = x @ theta["w"]
        return nn.functional.scaled_dot_product_attention(q, q, q).float().square().mean()

    w = torch.arange(64.0).sin().reshape(8, 8).requires_grad_()
    problem = gimli.Problem(loss, loss, SGD(lr=0.1))
    with mode():
        out = gimli.unroll(problem, {"w": w}, [None] * 3, None, memory=memory)
    out.backward()
    assert len(set(met)) == 1
    assert w.grad is not None
    with mode():
        expected = gimli.meta_gradient(problem, {"w": w.detach()}, [None] * 3, None).B_0["w"]
    torch.testing.assert_close(w.grad, expected, rtol=0, atol=0)
    assert not torch.is_autocast_enabled("cpu")


def test_attention_in_both_interfaces() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    x = torch.randn(3, 4, 8, dtype=torch.float64)

    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        return functional_call(net, theta, x).square().mean()

    found = gimli.meta_gradient(gimli.Problem(loss, loss, SGD(lr=0.1)), dict(net.named_parameters()), [None], None)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with inner_loop.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
        diffopt.step(fnet(x).square().mean())
        fnet(x).square().mean().backward()
    for k, p in net.named_parameters():
        torch.testing.assert_close(found.B_0[k], p.grad)
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("end", ["only the loss is read", "a loss that is not finite"])
def test_a_graph_that_is_not_swept_is_freed(end: str) -> None:
    net, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.arange(12.0).reshape(4, 3)
    made: list[weakref.ref[Tensor]] = []

    def loss(theta: Any, phi: Any, batch: float) -> Tensor:
        out = functional_call(net, theta, x)
        made.append(weakref.ref(out))
        return out.exp().mean() * batch

    last = float("nan") if end == "a loss that is not finite" else 1.0
    problem = gimli.Problem(loss, loss, SGD(lr=0.1))
    try:
        with torch.no_grad():
            gimli.unroll(problem, dict(net.named_parameters()), [1.0, 1.0, last], 1.0)
    except gimli.errors.NotFiniteError:
        assert end == "a loss that is not finite"
    gc.collect()
    assert made
    assert not any(ref() is not None for ref in made)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, at a first jvp
@pytest.mark.parametrize(
    "transform", [torch.func.grad, torch.func.vmap, lambda f: lambda t: torch.func.jvp(f, (t,), (t,))]
)
def test_transforms_of_torch_func_are_refused(transform: Any) -> None:
    problem = gimli.Problem(lambda t, p, b: t["w"] ** 2, lambda t, p, b: t["w"] ** 2, SGD(lr=0.1))
    at = torch.ones(3) if transform is torch.func.vmap else torch.ones(())
    with pytest.raises(ArgumentError, match=r"torch\.func: expected none of its transforms"):
        transform(lambda w: gimli.unroll(problem, {"w": w}, [None], None))(at)


@pytest.mark.parametrize("options", [{}, {"memory": gimli.memory.StoreStates()}, {"second_order": MEANS[1]}], ids=str)
def test_losses_that_differentiate_inside(options: dict[str, Any]) -> None:
    def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
        x = torch.ones(2, dtype=torch.float64, requires_grad=True)
        (du,) = torch.autograd.grad((theta["w"] * x**2).sum(), x, create_graph=True)
        return (du - 1).square().sum()

    start = {"w": torch.ones(2, dtype=torch.float64)}
    found = gimli.meta_gradient(gimli.Problem(loss, loss, SGD(lr=0.1)), start, [None] * 2, None, **options)
    # du = 2 w, so a step multiplies w - 1/2 by 1 - 0.8, and L is 4 (w - 1/2)^2
    torch.testing.assert_close(found.B_0["w"], torch.full((2,), 4 * 0.2**4, dtype=torch.float64))


class Tanh(nn.Module):
    def __init__(self, put_off: Callable[..., Any]) -> None:
        super().__init__()
        self.w, self.put_off = nn.Parameter(torch.tensor(0.5, dtype=torch.float64)), put_off

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.put_off(lambda x: torch.tanh(self.w * x), x)
        return y.square().sum()


@pytest.mark.parametrize("memory", SCHEDULES, ids=str)
def test_one_module_with_two_sets_of_weights(memory: Any) -> None:
    """Right where all work is done at once; refused where some is put off, since no set of weights is that of both."""

    def gradient_of(net: Tanh, **more: Any) -> gimli.MetaGradient:
        def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
            one: Tensor = functional_call(net, {"w": theta["u"]}, (x,))
            return one + functional_call(net, {"w": theta["v"]}, (2 * x,))

        theta_0 = {k: torch.tensor(v, dtype=torch.float64) for k, v in (("u", 0.3), ("v", 0.7))}
        x = torch.tensor(1.5, dtype=torch.float64)
        return gimli.meta_gradient(gimli.Problem(loss, loss, SGD(lr=0.3)), theta_0, [x] * 2, x, memory=memory, **more)

    found, expected = gradient_of(Tanh(at_once)), gradient_of(Tanh(at_once), watch=lambda event: None)
    assert found.B_0 == expected.B_0
    with pytest.raises(ArgumentError, match="to have one set of weights; got one that is called with several"):
        gradient_of(Tanh(later))
    with pytest.raises(ArgumentError, match="to have one set of weights"):
        gradient_of(Tanh(later), check=False)


@pytest.mark.parametrize("memory", SCHEDULES, ids=str)
def test_work_put_off_under_tasks(memory: Any) -> None:
    """One task at a time, asked for or not."""

    def run(put_off: Callable[..., Any], tasks: Any) -> gimli.MetaGradient:
        net = Tanh(put_off)

        def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
            value: Tensor = functional_call(net, theta, (x,))
            return value

        x = torch.linspace(0.2, 2.0, 24, dtype=torch.float64).reshape(3, 2, 4)
        problem = gimli.Problem(loss, loss, SGD(lr=0.3))
        return gimli.meta_gradient(problem, dict(net.named_parameters()), x, x[0], tasks=tasks, memory=memory)

    expected = run(at_once, 2)
    for tasks in (gimli.Tasks(2, chunk=1), 2):
        torch.testing.assert_close(run(later, tasks).B_0, expected.B_0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("memory", SCHEDULES, ids=str)
def test_tasks_whose_work_is_put_off_run_one_at_a_time_by_themselves(memory: Any, check: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()

    def loss_by(run: Any) -> Any:
        class Run(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = run(self.net, x)
                return out

        model = Run()

        def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
            return (functional_call(model, theta, (batch[0],)) - batch[1]).square().mean()

        return loss

    torch.manual_seed(0)
    theta_0 = {f"net.{k}": v.detach().clone() for k, v in net.named_parameters()}
    batches = [(torch.randn(3, 5, 3).double(), torch.randn(3, 5, 2).double()) for _ in range(3)]
    at_once = loss_by(lambda net, x: net(x))
    put_off = loss_by(lambda net, x: checkpoint(net, x, use_reentrant=False))
    results = [
        gimli.meta_gradient(
            gimli.Problem(loss, loss, SGD(lr=0.3)),
            theta_0,
            batches,
            batches[0],
            tasks=T,
            memory=memory,
            check=check,
        )
        for loss in (at_once, put_off)
        for T in (3, gimli.Tasks(3, chunk=2))
    ]
    for result in results[1:]:
        agree(result, results[0], rtol=1e-12)
