"""The paper's requirements I, II, IIIa, IIIb: which one a problem fails, and why, before any work."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError, RequirementError
from gimli_core.optimizers import SGD, Adagrad, Adam


def curved(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return (theta["w"] ** 2).sum()


def linear(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return theta["w"].sum()


class Once(torch.autograd.Function):
    """A square whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * arriving


def arguments(train_loss: Any = curved, val_loss: Any = curved, optimizer: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "problem": gimli.Problem(train_loss, val_loss, optimizer or SGD(lr=0.1)),
        "theta_0": {"w": torch.tensor([1.0, 2.0])},
        "train_batches": [None] * 2,
        "val_batch": None,
        **more,
    }


def with_phi(expression: Any) -> Any:
    return lambda theta, phi, batch: expression(theta["w"], phi["c"])


C = {"phi_loss": {"c": 0.5}}
WARM = {"step": 1, "sum": {"w": torch.ones(2, dtype=torch.float64)}}

FAILING: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "val_loss constant": (
        {"val_loss": lambda t, p, b: torch.tensor(1.0)},
        "I",
        ["val_loss has no gradient path to theta", ".detach()"],
    ),
    "val_loss detached": ({"val_loss": lambda t, p, b: t["w"].detach().sum()}, "I", ["val_loss has no gradient path"]),
    "val_loss an accuracy": ({"val_loss": lambda t, p, b: (t["w"] > 0).double().mean()}, "I", ["val_loss", "argmax"]),
    "val_loss of phi alone": (
        {"val_loss": lambda t, p, b: p["c"] ** 2, **C},
        "I",
        ["val_loss has no gradient path to theta"],
    ),
    "no second derivative": (
        {"train_loss": lambda t, p, b: Once.apply(t["w"]).sum()},
        "II",
        ["train_loss has no second derivative", "differentiate twice"],
    ),
    "no second derivative, with a phi_loss": (
        {"train_loss": with_phi(lambda w, c: Once.apply(w * c).sum()), **C},
        "II",
        ["train_loss has no second derivative"],
    ),
    "momentum is off": ({"phi_opt": {"dampening": 0.1}}, "IIIa", ["SGD", "'dampening'", "does not use"]),
    "a given state has no start": (
        {"optimizer": Adagrad(), "phi_opt": {"initial_accumulator_value": 0.1}, "state_0": WARM},
        "IIIa",
        ["Adagrad", "with a given state_0", "'initial_accumulator_value'"],
    ),
    "phi_loss unused": ({"phi_loss": {"c": 0.5}}, "IIIb", ["'c'", "does not depend on it"]),
    "phi_loss shifts the loss": (
        {"train_loss": with_phi(lambda w, c: (w**2).sum() + c), **C},
        "IIIb",
        ["'c'", "mixed second derivative is 0"],
    ),
    "phi_loss shifts a linear loss": (
        {"train_loss": with_phi(lambda w, c: w.sum() + c), **C},
        "IIIb",
        ["linear in theta", "alone could carry phi_loss", "'c'"],
    ),
    "phi_loss detached": (
        {"train_loss": with_phi(lambda w, c: (w**2).sum() * c.detach()), **C},
        "IIIb",
        ["'c'"],
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_failing(case: str) -> None:
    changed, name, says = FAILING[case]
    args = arguments(**changed)
    verdict = gimli.check_requirements(**args)
    assert not verdict.ok
    assert [entry.name for entry in verdict.entries if not entry.holds] == [name]
    assert "FAILS" in str(verdict)
    for call in (gimli.meta_gradient, gimli.unroll):
        with pytest.raises(RequirementError) as caught:
            call(**args)
        assert f"requirement {name} fails" in str(caught.value)
        assert all(part in str(caught.value) for part in says), str(caught.value)


LAST = object()

HOLDING: dict[str, dict[str, Any]] = {
    "plain": {},
    "a linear inner loss": {"train_loss": linear, "phi_opt": {"lr": 0.1}},
    "phi scales a linear loss": {"train_loss": with_phi(lambda w, c: w.sum() * c), **C},
    "phi at the last step only": {
        "train_loss": lambda t, p, b: (t["w"] ** 2).sum() * (p["c"] if b is LAST else 1.0),
        "train_batches": [None, None, LAST],
        **C,
    },
    "phi only in val_loss": {"val_loss": with_phi(lambda w, c: (w * c).sum()), **C},
    "momentum of value 0": {"phi_opt": {"momentum": 0.0, "dampening": 0.0}},
    "every hyperparameter": {
        "optimizer": Adam(),
        "phi_opt": {"lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-3, "weight_decay": 0.0},
    },
    "the start of Adagrad": {"optimizer": Adagrad(), "phi_opt": {"initial_accumulator_value": 0.1}},
    "dead units": {"train_loss": lambda t, p, b: torch.relu(t["w"] - 50).sum(), "val_loss": curved},
}


@pytest.mark.parametrize("case", HOLDING)
def test_holding(case: str) -> None:
    verdict = gimli.check_requirements(**arguments(**HOLDING[case]))
    verdict.assert_ok()
    assert [entry.name for entry in verdict.entries] == ["I", "II", "IIIa", "IIIb"]
    assert "FAILS" not in str(verdict)


def test_several_failures_are_all_told() -> None:
    args = arguments(val_loss=lambda t, p, b: torch.tensor(1.0), phi_opt={"dampening": 0.1}, phi_loss={"c": 0.5})
    with pytest.raises(RequirementError) as caught:
        gimli.check_requirements(**args).assert_ok()
    assert all(f"requirement {name} fails" in str(caught.value) for name in ("I", "IIIa", "IIIb"))


def test_a_linear_loss_is_mentioned() -> None:
    assert "line 14's curvature is 0" in str(gimli.check_requirements(**arguments(train_loss=linear)))


def test_no_steps_need_only_the_first() -> None:
    verdict = gimli.check_requirements(**arguments(steps=0))
    assert [entry.name for entry in verdict.entries] == ["I"]


def test_a_hyperparameter_that_is_not_continuous_and_an_integer_parameter() -> None:
    with pytest.raises(ArgumentError, match=r"phi_opt\['amsgrad'\]: expected a continuous hyperparameter"):
        gimli.check_requirements(**arguments(optimizer=Adam(), phi_opt={"amsgrad": 1.0}))
    with pytest.raises(
        ArgumentError, match=r"theta_0\['n'\]: expected a dense floating-point tensor; got a torch.int64"
    ):
        gimli.check_requirements(**arguments(theta_0={"w": torch.ones(2), "n": torch.tensor(3)}))


def test_the_check_can_be_left_out() -> None:
    """Then what has no path simply has derivative 0."""
    result = gimli.meta_gradient(**arguments(phi_loss={"c": 0.5}, phi_opt={"dampening": 0.1}), check=False)
    assert not result.A_loss["c"].any()
    assert not result.A_opt["dampening"].any()


def test_the_check_runs_once_for_a_problem_and_again_for_other_shapes() -> None:
    calls = itertools.count()  # the one counter that a trial cannot put back

    def counting(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        next(calls)
        return curved(theta, phi, batch)

    args = arguments(train_loss=counting)
    counts = []
    for w in (torch.ones(2), torch.ones(2), torch.ones(3)):
        before = next(calls)
        gimli.meta_gradient(**{**args, "theta_0": {"w": w}})
        counts.append(next(calls) - before - 1)
    assert counts[1] == 2
    assert counts[0] == counts[2] > 2


def test_random_numbers_and_buffers_are_left_as_found() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))

    def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (net(torch.rand(4, 2)) * theta["w"]).square().sum()

    before, mean = torch.get_rng_state(), net[0].running_mean.clone()
    gimli.check_requirements(**arguments(train_loss=noisy, val_loss=noisy)).assert_ok()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(mean, net[0].running_mean)
