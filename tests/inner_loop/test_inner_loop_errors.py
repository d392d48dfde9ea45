"""Bad input to the imperative inner loop: each is refused, and the message says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core.inner_loop as inner_loop
from gimli_core.errors import ArgumentError, ClosedError
from gimli_core.optimizers import SGD

X = torch.ones(2, 3, dtype=torch.float64)


def pair(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(3, 1)
    return module, torch.optim.SGD(module.parameters(), lr=0.1, **options)


def test_an_optimizer_without_a_rule_is_named_and_can_be_registered() -> None:
    class Steeper(torch.optim.SGD):
        pass

    module, _ = pair()
    with pytest.raises(ArgumentError, match=r"'SGD'.*got LBFGS.*register_optim\(LBFGS, rule\)"):
        inner_loop.get_diff_optim(torch.optim.LBFGS(module.parameters()), module.parameters())
    opt = Steeper(module.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=r"Steeper.*register_optim\(Steeper"), inner_loop.innerloop_ctx(module, opt):
        pass
    with pytest.raises(ArgumentError, match="Steeper"):
        inner_loop.create_diff_optim(Steeper, {"lr": 0.1}, params=list(module.parameters()))
    # A subclass may step differently, so it has to be said how.
    inner_loop.register_optim(Steeper, lambda group: SGD(lr=2 * group["lr"]))
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        diffopt.step(fmodel.weight.sum())
        torch.testing.assert_close(fmodel.weight.detach(), module.weight.detach() - 0.2)
    inner_loop.register_optim(Steeper, SGD)
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        diffopt.step(fmodel.weight.sum())
        torch.testing.assert_close(fmodel.weight.detach(), module.weight.detach() - 0.1)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((nn.Linear, SGD), "optim_type"), ((torch.optim.SGD, 3), "diff_optim_type.*Optimizer class")],
)
def test_nonsense_is_not_registered(arguments: tuple[Any, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        inner_loop.register_optim(*arguments)


def test_a_sparse_gradient() -> None:
    module = nn.Embedding(4, 2, sparse=True)
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    with (
        inner_loop.innerloop_ctx(module, opt, track_higher_grads=False) as (fmodel, diffopt),
        pytest.raises(ArgumentError, match=r"sparse.*'weight'.*sparse=False"),
    ):
        diffopt.step(fmodel(torch.tensor([1, 2])).sum())


def test_a_parameter_missing_from_every_group() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    head = torch.optim.SGD(module[1].parameters(), lr=0.1)
    with (
        pytest.raises(ArgumentError, match=r"'0\.weight', '0\.bias'.*requires_grad_\(False\)"),
        inner_loop.innerloop_ctx(module, head),
    ):
        pass
    # Tied to the module, its gradient arrives there; frozen, it has none; untracked, there is none to lose.
    with inner_loop.innerloop_ctx(module, head, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(fmodel(X).sum())
        fmodel(X).sum().backward()
        assert module[0].weight.grad is not None
        assert fmodel[0].weight is fmodel.init_fast_params[0]
    with inner_loop.innerloop_ctx(module, head, track_higher_grads=False) as (fmodel, diffopt):
        diffopt.step(fmodel(X).sum())
    module[0].requires_grad_(False)
    with inner_loop.innerloop_ctx(module, head) as (fmodel, diffopt):
        diffopt.step(fmodel(X).sum())


def test_a_parameter_that_is_not_the_models() -> None:
    _module, opt = pair()
    with pytest.raises(ArgumentError, match=r"group 0.*shape \[1, 3\] that is not among them"):
        inner_loop.get_diff_optim(opt, nn.Linear(3, 1).parameters())


LOSSES: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "of the module itself": lambda module, fmodel: module(X).sum(),
    "constant": lambda module, fmodel: torch.tensor(1.0),
    "detached": lambda module, fmodel: fmodel(X).detach().sum(),
    "of earlier fast weights": lambda module, fmodel: fmodel.init_fast_params[0].sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_does_not_depend_on_the_fast_weights(name: str) -> None:
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        diffopt.step(fmodel(X).sum())
        loss = LOSSES[name](module, fmodel)
        with pytest.raises(ArgumentError, match=r"depends on the latest fast weights.*fmodel"):
            diffopt.step(loss)


def test_use_after_the_context_has_closed() -> None:
    module, opt = pair(momentum=0.9)
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(fmodel(X).sum())
        loss, outer = fmodel(X).sum(), fmodel(X).square().sum()
        latest = [p.detach().clone() for p in fmodel.parameters()]
    with pytest.raises(ClosedError, match=r"step.*`with` block"):
        diffopt.step(loss)
    with pytest.raises(ClosedError, match=r"fmodel.*`with` block"):
        fmodel(X)
    outer.backward()  # a loss in hand keeps what it needs
    assert module.weight.grad is not None
    assert [torch.equal(p, q) for p, q in zip(fmodel.parameters(), latest, strict=True)] == [True, True]
    with torch.no_grad():
        torch.testing.assert_close(fmodel(X), X @ latest[0].T + latest[1])


def test_the_context_closes_when_it_is_left_by_an_exception() -> None:
    module, opt = pair()
    with pytest.raises(KeyError), inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        raise KeyError
    with pytest.raises(ClosedError):
        diffopt.step(fmodel.weight.sum())


@pytest.mark.parametrize("steps", [0, 2])
def test_fast_weights_edited_in_place(steps: int) -> None:
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        for _ in range(steps):
            diffopt.step(fmodel(X).sum())
        loss = fmodel(X).sum()
        with torch.no_grad():
            fmodel.bias.add_(1)
        with pytest.raises(ArgumentError, match=r"'bias'.*in place.*update_params"):
            diffopt.step(loss)
        with pytest.raises(ArgumentError, match=r"'bias'.*in place.*update_params"):
            fmodel(X)
        fmodel.update_params([p + 1 for p in fmodel.parameters()])  # the remedy
        diffopt.step(fmodel(X).sum())


def test_a_fast_weight_assigned_by_hand() -> None:
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        fmodel.weight = nn.Parameter(torch.zeros(1, 3))
        with pytest.raises(ArgumentError, match=r"'weight'.*assigned since.*update_params"):
            diffopt.step(fmodel.weight.sum())


def test_a_loss_whose_graph_is_gone() -> None:
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        loss = fmodel(X).square().sum()
        loss.backward()
        with pytest.raises(ArgumentError, match=r"differentiated before.*retain_graph=True"):
            diffopt.step(loss)
        diffopt.step(fmodel(X).square().sum())
        outer = fmodel(X).square().sum()
        outer.backward()
        with pytest.raises(RuntimeError, match="second time"):
            outer.backward()


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ({"lrr": [0.1]}, "override.*'lrr'.*Did you mean 'lr'"),
        ({"lr": [0.1, 0.2]}, "one for each of the 1 groups; got 2 values"),
        ({"lr": torch.tensor(0.1)}, r"a list with one value.*got Tensor.*\[value\]"),
        ({"nesterov": [torch.tensor(1.0)]}, "switch"),
        ({"lr": [torch.tensor([0.1, 0.2])]}, r"broadcasts to \[1, 3\]; got \[2\]"),
        ({"lr": [torch.tensor(1)]}, r"floating-point tensor; got torch.int64"),
    ],
)
def test_an_override_that_fits_nothing(override: Any, match: str) -> None:
    module, opt = pair()
    with (
        pytest.raises(ArgumentError, match=match),
        inner_loop.innerloop_ctx(module, opt, override=override) as (fmodel, diffopt),
    ):
        diffopt.step(fmodel(X).sum())


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (lambda grads: grads[:1], "a list of 2 gradients back; got 1"),
        (lambda grads: [g.sum() for g in grads], "'weight'.*another shape"),
        (lambda grads: [None if g is None else g for g in grads][::-1], "'weight'.*another shape"),
    ],
)
def test_a_callback_that_returns_something_else(callback: Any, match: str) -> None:
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt), pytest.raises(ArgumentError, match=match):
        diffopt.step(fmodel(X).sum(), grad_callback=callback)


def test_modules_that_cannot_be_patched() -> None:
    module, _ = pair()
    fmodel = inner_loop.monkeypatch(module)
    for wrong, came in ((fmodel, "one already"), (3, "int")):
        with pytest.raises(ArgumentError, match=came):
            inner_loop.monkeypatch(wrong)  # type: ignore[arg-type]


def test_fast_weights_that_are_missing_or_misshapen() -> None:
    module, opt = pair()
    fmodel = inner_loop.patch.make_functional(module)
    with pytest.raises(ArgumentError, match="params"):
        fmodel(X)
    with pytest.raises(ArgumentError, match="none yet"):
        list(fmodel.parameters())
    with pytest.raises(ArgumentError, match=r"2 tensors.*got 1"):
        fmodel.update_params([module.weight])
    with pytest.raises(ArgumentError, match=r"'bias'.*shape \[1\]; got shape \[1, 3\]"):
        fmodel.update_params([module.weight, module.weight])
    with pytest.raises(ArgumentError, match=r"step\(loss, params="):
        inner_loop.get_diff_optim(opt, module.parameters()).step(module(X).sum())
    with pytest.raises(ArgumentError, match=r"inner_loop|instance"):
        inner_loop.get_diff_optim(torch.optim.SGD, module.parameters())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="neither"):
        inner_loop.create_diff_optim(torch.optim.SGD, {"lr": 0.1})


def test_times_that_are_not_kept() -> None:
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt, track_higher_grads=False) as (fmodel, diffopt):
        diffopt.step(fmodel(X).sum())
        assert list(fmodel.parameters(time=0)) == list(fmodel.parameters(time=-1))
        with pytest.raises(ArgumentError, match="only the latest"):
            fmodel.parameters(time=1)
        with pytest.raises(ArgumentError, match="track_higher_grads=True"):
            _ = fmodel.init_fast_params
        with pytest.raises(ArgumentError, match="True or False"):
            fmodel.track_higher_grads = "yes"  # type: ignore[assignment]
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt), pytest.raises(ArgumentError, match="1 sets"):
        fmodel.parameters(time=1)


def test_options_that_change_the_form_of_the_state_by_the_way() -> None:
    module = nn.Linear(3, 1)
    opt = torch.optim.Adam(module.parameters())
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        diffopt.step(fmodel(X).sum())
        with pytest.raises(ArgumentError, match=r"max_exp_avg_sq.*before the first step"):
            diffopt.step(fmodel(X).sum(), override={"amsgrad": [True]})
    module, plain = pair()
    with inner_loop.innerloop_ctx(module, plain) as (fmodel, diffopt):
        diffopt.step(fmodel.weight.sum())
        diffopt.step(fmodel.weight.sum(), override={"momentum": [0.5]})  # as in torch.optim: the buffer starts now
        diffopt.step(fmodel.weight.sum())
        torch.testing.assert_close(fmodel.weight.detach(), module.weight.detach() - 0.1 * (1 + 1 + 1.5))


UNDER_INFERENCE = {
    "the context": lambda module, opt: inner_loop.innerloop_ctx(module, opt).__enter__(),
    "the context, nothing tracked": lambda module, opt: inner_loop.innerloop_ctx(
        module, opt, track_higher_grads=False
    ).__enter__(),
    "monkeypatch": lambda module, opt: inner_loop.monkeypatch(module),
    "make_functional": lambda module, opt: inner_loop.patch.make_functional(module),
    "get_diff_optim": lambda module, opt: inner_loop.get_diff_optim(opt, module.parameters()),
    "create_diff_optim": lambda module, opt: inner_loop.create_diff_optim(
        torch.optim.SGD, {"lr": 0.1}, params=list(module.parameters())
    ),
}


@pytest.mark.parametrize("entry", UNDER_INFERENCE)
def test_inference_mode_is_refused_wherever_an_inner_loop_begins(entry: str) -> None:
    refused = r"torch.inference_mode: expected it to be off; got it on.*use torch.no_grad\(\)"
    with torch.inference_mode(), pytest.raises(ArgumentError, match=refused):
        UNDER_INFERENCE[entry](*pair())


def test_inference_mode_is_refused_in_a_step_and_may_stand_around_a_call() -> None:
    module, opt = pair()
    x = X.clone()
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(fmodel(x).square().sum())
        with torch.inference_mode():
            seen = fmodel(x)
            with pytest.raises(ArgumentError, match=r"torch\.inference_mode: expected it to be off"):
                diffopt.step(fmodel(x).square().sum())
        assert torch.equal(fmodel(x), seen)
        fmodel(x).sum().backward()
    assert module.weight.grad is not None
