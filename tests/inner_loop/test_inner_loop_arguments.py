"""Every argument of the inner loop, given nonsense: an ArgumentError that names it, before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gimli_core.inner_loop as inner_loop
from gimli_core.errors import ArgumentError

X = torch.ones(2, 3, dtype=torch.float64)


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(3, 2)
    return module, torch.optim.SGD(module.parameters(), lr=0.1)


STEPS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a vector": (lambda f, d: d.step(f(X)), r"^loss: expected one number; got shape \[2, 2\].*\.sum\(\) or \.mean\(\)"),
    "an empty loss": (lambda f, d: d.step(f(X)[:0]), r"^loss: expected one number"),
    "a float": (lambda f, d: d.step(f(X).sum().item()), r"^loss: expected a tensor; got float"),
    "no loss": (lambda f, d: d.step(None), r"^loss: expected a tensor; got None"),
    "a complex loss": (lambda f, d: d.step(f(X).sum() * 1j), r"^loss: expected a real number; got torch.complex128"),
    "override, a list": (lambda f, d: d.step(f(X).sum(), override=["a"]), r"^override.*got list"),
    "override, a word": (lambda f, d: d.step(f(X).sum(), override={"lr": ["a"]}), r"^lr of group 0.*got 'a'"),
    "override, None": (lambda f, d: d.step(f(X).sum(), override={"lr": [None]}), r"^lr of group 0.*got None"),
    "callback, a number": (lambda f, d: d.step(f(X).sum(), grad_callback=3), r"^grad_callback.*got int"),
    "callback, nothing back": (lambda f, d: d.step(f(X).sum(), grad_callback=lambda G: None), r"grad_callback.*None"),
    "callback, a tensor back": (
        lambda f, d: d.step(f(X).sum(), grad_callback=lambda G: G[0]),
        r"grad_callback.*Tensor",
    ),
    "params, a number": (lambda f, d: d.step(f(X).sum(), params=5), r"^params.*got int"),
    "params, numbers": (lambda f, d: d.step(f(X).sum(), params=[1, 2]), r"^params, at 0.*got int"),
    "params, too few": (lambda f, d: d.step(f(X).sum(), params=list(f.parameters())[:1]), r"^params.*got 1"),
    "call, params a number": (lambda f, d: f(X, params=3), r"^params.*got int"),
    "call, params a tensor": (lambda f, d: f(X, params=f.weight), r"^params.*got Tensor"),
    "update_params, a module": (lambda f, d: f.update_params(nn.Linear(1, 1)), r"^params.*got Linear"),
    "a time that is no number": (lambda f, d: f.parameters(time="a"), r"time.*got 'a'"),
}


@pytest.mark.parametrize("name", STEPS)
def test_within_a_loop(name: str) -> None:
    call, match = STEPS[name]
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        with pytest.raises(ArgumentError, match=match):
            call(fmodel, diffopt)
        assert all(torch.equal(p, q) for p, q in zip(fmodel.parameters(), module.parameters(), strict=True))


def test_one_number_in_any_shape_is_a_loss() -> None:
    module, opt = pair()
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        a = diffopt.step(fmodel(X).sum().reshape(1, 1))
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        b = diffopt.step(fmodel(X).sum())
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


CONTEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "override": ({"override": ["a"]}, r"^override.*\{name: \[value\]\}; got list"),
    "a device that is none": ({"device": "gpu0"}, r"^device.*'gpu0'"),
    "a device that is not there": ({"device": "cuda:77"}, r"^device.*'cuda:77'"),
    "a device of another type": ({"device": 1.5}, r"^device.*1\.5"),
    "copy, a word": ({"copy_initial_weights": "no"}, r"^copy_initial_weights: expected True or False; got 'no'"),
    "track, a word": ({"track_higher_grads": "no"}, r"^track_higher_grads: expected True or False; got 'no'"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_of_the_context(name: str) -> None:
    options, match = CONTEXTS[name]
    with pytest.raises(ArgumentError, match=match), inner_loop.innerloop_ctx(*pair(), **options):
        pass


MADE: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "get, references": (lambda m, o: inner_loop.get_diff_optim(o, 3), r"^reference_params.*got int"),
    "get, a module for references": (lambda m, o: inner_loop.get_diff_optim(o, m), r"^reference_params.*got Linear"),
    "get, callback": (lambda m, o: inner_loop.get_diff_optim(o, m.parameters(), grad_callback=3), r"^grad_callback"),
    "get, device": (lambda m, o: inner_loop.get_diff_optim(o, m.parameters(), device="gpu0"), r"^device.*'gpu0'"),
    "get, fmodel": (lambda m, o: inner_loop.get_diff_optim(o, m.parameters(), fmodel=m), r"^fmodel.*monkeypatch"),
    "create, options": (lambda m, o: inner_loop.create_diff_optim(type(o), ["a"], params=[X]), r"^opt_kwargs.*list"),
    "create, an option": (
        lambda m, o: inner_loop.create_diff_optim(type(o), {"x": 1}, params=[X]),
        r"^opt_kwargs.*'x'",
    ),
    "create, a number": (lambda m, o: inner_loop.create_diff_optim(type(o), params=3), r"^params.*got int"),
    "create, numbers": (lambda m, o: inner_loop.create_diff_optim(type(o), params=[3]), r"^params, at 0.*got int"),
    "create, a group without": (lambda m, o: inner_loop.create_diff_optim(type(o), params=[{"a": 3}]), r"^params.*'a'"),
    "create, groups and tensors": (
        lambda m, o: inner_loop.create_diff_optim(type(o), params=[{"params": X}, X]),
        r"^params.*got Tensor",
    ),
    "create, nothing": (lambda m, o: inner_loop.create_diff_optim(type(o), params=[]), r"^params.*none"),
    "apply, a list": (lambda m, o: inner_loop.apply_trainable_opt_params(o, ["a"]), r"^override.*got list"),
    "apply, no optimizer": (lambda m, o: inner_loop.apply_trainable_opt_params(m, {}), r"^opt: .*got Linear"),
    "trainable, no optimizer": (lambda m, o: inner_loop.get_trainable_opt_params(3), r"^opt: .*got int"),
    "trainable, device": (lambda m, o: inner_loop.get_trainable_opt_params(o, "gpu0"), r"^device.*'gpu0'"),
    "func params, device": (lambda m, o: inner_loop.utils.get_func_params(m, "gpu0"), r"^device.*'gpu0'"),
    "func params, copy": (lambda m, o: inner_loop.utils.get_func_params(m, safe_copy="no"), r"^safe_copy.*'no'"),
}


@pytest.mark.parametrize("name", MADE)
def test_of_what_makes_an_optimizer(name: str) -> None:
    call, match = MADE[name]
    with pytest.raises(ArgumentError, match=match):
        call(*pair())
