"""Unrolled leaves in .grad what unroll's backward leaves there, and says what it leaves out."""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from tests.outer_loop.problems import TARGETS, learned_rate, leaves, problem


@pytest.mark.parametrize("options", [{}, {"approximation": gimli.FirstOrder()}, {"memory": gimli.memory.StoreStates()}])
def test_the_gradient_is_that_of_unroll(options):
    phi, again = leaves(), leaves()
    result = gimli.Unrolled(problem(), phi, learned_rate, steps=4, **options)(TARGETS)
    loss = gimli.unroll(problem(), **learned_rate(again, TARGETS), steps=4, **options)
    loss.backward()
    assert torch.equal(result.val_loss, loss.detach())
    for name, leaf in phi.items():
        assert torch.equal(leaf.grad, again[name].grad)
        assert torch.equal(result.A[name], leaf.grad)
    assert isinstance(result, gimli.MetaGradient)
    assert bool(result.approximation) == ("approximation" in options)


def test_gradients_are_added_to_what_is_there():
    phi = leaves()
    estimator = gimli.Unrolled(problem(), phi, learned_rate, steps=4)
    first = estimator(TARGETS).A
    estimator(TARGETS)
    for name, leaf in phi.items():
        torch.testing.assert_close(leaf.grad, 2 * first[name], rtol=1e-15, atol=0)
    assert torch.equal(first["w"], gimli.Unrolled(problem(), leaves(), learned_rate, steps=4)(TARGETS).A["w"])


def test_a_minibatch_of_tasks_is_the_mean_over_them():
    def inner(phi, targets):
        support = torch.stack(targets)
        return {**learned_rate(phi, targets), "train_batches": lambda j: support, "val_batch": support}

    phi = leaves()
    A = gimli.Unrolled(problem(), phi, inner, steps=3, tasks=2)([torch.ones(2), -torch.ones(2)]).A
    alone = [
        gimli.Unrolled(problem(), leaves(), inner, steps=3, tasks=1)([target]).A
        for target in (torch.ones(2), -torch.ones(2))
    ]
    for name in phi:
        torch.testing.assert_close(A[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"phi": {}}, "phi: expected a dict"),
        ({"phi": torch.ones(1)}, "phi: expected a dict"),
        ({"phi": {"log_lr": torch.ones(())}}, "at least one tensor that requires grad"),
        ({"phi": {"lr": torch.ones((), requires_grad=True).exp()}}, "a leaf of autograd's graph"),
        ({"inner": {"theta_0": {}}}, "inner: expected a function"),
        ({"problem": None}, "problem: expected a gimli.Problem"),
        ({"step": 3}, "Did you mean 'steps'"),
        ({"second_order": "third"}, "second_order"),
    ],
)
def test_what_cannot_be_an_inner_loop_is_refused_at_once(changed, match):
    arguments = {"problem": problem(), "phi": leaves(), "inner": learned_rate, **changed}
    with pytest.raises(ArgumentError, match=match):
        gimli.Unrolled(**arguments)


@pytest.mark.parametrize(
    ("inner", "match"),
    [
        (lambda phi, drawn: None, "a dict"),
        (lambda phi, drawn: {"theta_0": {}, "batches": drawn}, "arguments of gimli.unroll"),
        (lambda phi, drawn: {"theta_0": {"w": phi["w"]}}, "without 'train_batches', 'val_batch'"),
        (lambda phi, drawn: {**learned_rate(phi, drawn), "steps": 3}, "other arguments than are fixed"),
        (lambda phi, drawn: learned_rate(leaves(), drawn), "depends on 'w', 'log_lr'"),
    ],
)
def test_what_inner_returns_is_checked(inner, match):
    phi = leaves()
    with pytest.raises(ArgumentError, match=match):
        gimli.Unrolled(problem(), phi, inner, steps=4)(TARGETS)
    assert all(leaf.grad is None for leaf in phi.values())


@pytest.mark.parametrize("kind", ["ES", "PES", "Implicit", "Unrolled", "Windows"])
def test_phi_of_a_module_dict_and_nested_for_the_losses(kind):
    """phi may be an nn.ParameterDict, and `inner` may nest it; dicts within phi itself are refused in one line."""

    def flat(theta, phi, target):
        return (theta["w"] - target).square().sum() / 2 + phi["a"] * theta["w"].square().sum()

    def val(theta, phi, target):
        return (theta["w"] - target).square().sum() / 2

    def nested(theta, phi, target):
        return flat(theta, phi["l2"], target)

    more = {"ES": {"steps": 4, "sigma": 0.01, "pairs": 3}, "PES": {"steps": 4, "length": 2, "sigma": 0.01, "pairs": 3}}
    more |= {"Windows": {"steps": 4, "length": 2}, "Implicit": {"steps": 40}, "Unrolled": {"steps": 4}}
    gradients = []
    for loss, put in ((flat, lambda phi: phi), (nested, lambda phi: {"l2": phi})):
        torch.manual_seed(0)
        phi = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.tensor(0.3))})

        def inner(phi, target, put=put):
            start = {"theta_0": {"w": torch.zeros(2)}, "train_batches": lambda j: target, "val_batch": target}
            return {**start, "phi_loss": put(dict(phi))}

        problem = gimli.Problem(loss, val, gimli.optimizers.SGD(lr=0.2))
        getattr(gimli, kind)(problem, phi, inner, **more[kind])(torch.ones(2))
        gradients.append(phi["a"].grad)
        with pytest.raises(
            ArgumentError, match=r"phi: expected a dict .*; got dicts in it: 'l2'. Name each tensor here"
        ):
            getattr(gimli, kind)(problem, {"l2": phi}, inner, **more[kind])
    assert gradients[0] is not None
    assert torch.equal(*gradients)
