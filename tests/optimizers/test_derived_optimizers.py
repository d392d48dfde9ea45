"""Own optimizers: only a step is written, and the meta-gradient is exact; a wrong pullback is found and named."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError, VerificationError
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers import SGD, Adam, DerivedOptimizer, Muon, check_pullback, hyperparameter
from gimli_core.optimizers.interface import Pulled
from gimli_core.verification import verify
from tests.optimizers.rules import PlainAdam
from tests.problems import squares, two_tensors, wells


@dataclass(frozen=True, eq=False)
class Recurrent(DerivedOptimizer):
    """A learned optimizer: a small recurrent network for each coordinate (Andrychowicz et al. 2016)."""

    inward: Any = hyperparameter(None, low=float("-inf"))  # [hidden, 1]
    across: Any = hyperparameter(None, low=float("-inf"))  # [hidden, hidden]
    outward: Any = hyperparameter(None, low=float("-inf"))  # [hidden]
    hidden: int = 3

    def own_parameters(self) -> tuple[str, ...]:
        return ("inward", "across", "outward")

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        memory = {k: v.new_zeros(*v.shape, self.hidden) for k, v in theta.items()}
        return {"step": torch.zeros((), dtype=torch.float64), "memory": memory}

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        new, memory = {}, {}
        for k, w in theta.items():
            h = hyper[k]
            memory[k] = torch.tanh(G[k].unsqueeze(-1) @ h["inward"].t() + state["memory"][k] @ h["across"].t())
            new[k] = w - memory[k] @ h["outward"]
        return new, {"step": state["step"] + 1, "memory": memory}


PHI = {"c": torch.tensor(0.3, dtype=torch.float64)}


def test_a_derived_rule_equals_the_analytic_one() -> None:
    phi_opt = {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-2}
    found = [
        gimli.meta_gradient(
            gimli.Problem(wells, squares, rule),
            two_tensors(),
            lambda j: None,
            None,
            steps=6,
            phi_opt=phi_opt,
            phi_loss=PHI,
        )
        for rule in (PlainAdam(), Adam())
    ]
    ours, analytic = found
    for name in phi_opt:
        assert torch.allclose(ours.A_opt[name], analytic.A_opt[name], rtol=1e-12)
    assert torch.allclose(ours.A_loss["c"], analytic.A_loss["c"], rtol=1e-12)


def test_a_derived_rule_is_exact_at_zero() -> None:
    theta = {"w": torch.zeros(2)}
    hyper = {"w": {n: torch.tensor(v) for n, v in PlainAdam(lr=0.5, eps=0.25).hyperparameters().items()}}
    rule = PlainAdam()
    state = rule.initial_state(theta, hyper)
    zero = {"m": {"w": torch.zeros(2)}, "v": {"w": torch.zeros(2)}}
    pulled = rule.pullback(theta, state, {"w": torch.zeros(2)}, hyper, {"w": torch.ones(2)}, zero, ())
    assert torch.allclose(pulled.V["w"], torch.tensor(-2.0))  # -lr / eps


def learned() -> dict[str, Tensor]:
    return {"inward": torch.randn(3, 1) / 4, "across": torch.randn(3, 3) / 4, "outward": torch.randn(3) / 4}


def test_a_learned_optimizer_with_recurrent_state() -> None:
    report = verify(
        gimli.Problem(wells, squares, Recurrent(**learned())),
        two_tensors(),
        lambda j: None,
        None,
        steps=4,
        phi_opt=learned(),
        phi_loss=PHI,
    )
    report.assert_ok()


def test_a_learned_optimizer_learns() -> None:
    weights = {k: v.requires_grad_() for k, v in learned().items()}
    problem = gimli.Problem(wells, squares, Recurrent(**{k: v.detach() for k, v in weights.items()}))
    outer = torch.optim.Adam(weights.values(), lr=0.02)
    losses = []
    for _ in range(30):
        outer.zero_grad()
        L = gimli.unroll(problem, two_tensors(), lambda j: None, None, steps=4, phi_opt=weights, phi_loss=PHI)
        L.backward()
        outer.step()
        losses.append(L.item())
    assert losses[-1] < losses[0] / 2


def test_muon_meta_gradients_agree_with_every_oracle() -> None:
    theta = {"tall": torch.linspace(-1.0, 1.0, 6).reshape(3, 2), "wide": torch.linspace(0.5, 2.0, 8).reshape(2, 4)}
    phi_opt = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1, "ns_a": 3.4445, "ns_b": -4.775, "ns_c": 2.0315}
    verify(
        gimli.Problem(wells, squares, Muon()), theta, lambda j: None, None, steps=4, phi_opt=phi_opt, phi_loss=PHI
    ).assert_ok()


def test_muon_in_bfloat16_is_close_to_itself_in_full() -> None:
    """NOTE [rounded iteration]: two digits on well-conditioned matrices, and no more."""
    X, Y = torch.randn(40, 12), torch.randn(40, 6)
    theta = {"a": torch.randn(16, 12) / 3, "b": torch.randn(6, 16) / 4}

    def regression(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return ((torch.tanh(X @ theta["a"].t()) @ theta["b"].t() - Y) ** 2).mean()

    full, rounded = (
        gimli.meta_gradient(
            gimli.Problem(regression, regression, Muon(ns_dtype=dtype)),
            theta,
            lambda j: None,
            None,
            steps=3,
            phi_opt={"lr": 0.02},
        )
        for dtype in (None, torch.bfloat16)
    )
    assert 1e-4 < (full.B_0["a"] - rounded.B_0["a"]).norm() / full.B_0["a"].norm() < 0.03
    assert torch.allclose(full.A_opt["lr"], rounded.A_opt["lr"], rtol=0.01)


class WrongFactor(SGD):
    def _pullback(self, *args: Any) -> Any:
        V, B, S, A = super()._pullback(*args)
        return V, B, {slot: 2.001 / 2 * v for slot, v in S.items()}, A


class WrongEntry(SGD):
    def pullback(self, *args: Any) -> Pulled:
        pulled = super().pullback(*args)
        pulled.V["b"][2] += 0.5
        return pulled


class DroppedHyperparameter(SGD):
    def pullback(self, theta: Any, state: Any, G: Any, hyper: Any, B: Any, S: Any, wanted: Collection[str]) -> Pulled:
        return super().pullback(theta, state, G, hyper, B, S, [name for name in wanted if name != "lr"])


class WrongShape(SGD):
    def pullback(self, *args: Any) -> Pulled:
        pulled = super().pullback(*args)
        return pulled._replace(B={k: v.sum() for k, v in pulled.B.items()})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (WrongFactor, r"d theta' / d momentum_buffer of 'w'"),
        (WrongEntry, r"d theta' / d G of 'b'\[2\]: expected .* \(autograd\); got"),
        (DroppedHyperparameter, r"d theta' / d lr of 'w'"),
    ],
)
def test_a_wrong_pullback_is_found_and_named(rule: type[SGD], message: str) -> None:
    report = check_pullback(rule(lr=0.1, momentum=0.9))
    assert not report.ok
    with pytest.raises(VerificationError, match=message):
        report.assert_ok()


def test_a_pullback_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"the adjoint of theta of 'w': expected shape \[3, 2\]"):
        check_pullback(WrongShape(lr=0.1))


def test_a_correct_pullback_passes_at_a_singular_point_too() -> None:
    theta = {"w": torch.ones(3)}
    G = {"w": torch.tensor([0.0, 1.0, -2.0])}
    adam = Adam(lr=0.1, eps=0.1)
    hyper = {"w": {n: torch.tensor(v) for n, v in adam.hyperparameters().items()}}
    report = check_pullback(adam, theta, state=adam.initial_state(theta, hyper), G=G, hyper=hyper)
    assert {e.oracle for e in report.entries} == {"autograd", "finite differences"}
    report.assert_ok()
