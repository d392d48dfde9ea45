"""A learned optimizer's own parameters: of any shape and sign, from phi_opt alone, and whole modules of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers import ClipNorm, DerivedOptimizer, Optimizer, Partition, check_pullback, hyperparameter
from gimli_core.verification import verify

T, J = 3, 3
NET = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


@dataclass(frozen=True, eq=False)
class Gains(DerivedOptimizer):
    """theta' = theta - (the sum of gains)·G."""

    gains: Any = hyperparameter(None)

    def own_parameters(self) -> tuple[str, ...]:
        return ("gains",)

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        return {k: v - hyper[k]["gains"].sum() * G[k] for k, v in theta.items()}, {"step": state["step"] + 1}


@dataclass(frozen=True, eq=False)
class Network(DerivedOptimizer):
    """theta' = theta - lr·net(G, m')."""

    lr: Any = hyperparameter(0.2)
    net: Any = hyperparameter(None)

    def own_parameters(self) -> tuple[str, ...]:
        return ("net",)

    def slots(self) -> tuple[str, ...]:
        return ("m",)

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        weights = self.own_tensors(hyper, "net")
        m = {k: 0.9 * state["m"][k] + 0.1 * g for k, g in G.items()}
        seen = {k: torch.stack([G[k], m[k]], -1) for k in theta}
        moved = {k: v - hyper[k]["lr"] * functional_call(NET, weights, seen[k])[..., 0] for k, v in theta.items()}
        return moved, {"step": state["step"] + 1, "m": m}


def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
    return torch.stack([((torch.cosh(v) - batch) ** 2).sum() for v in theta.values()]).sum()


def weights() -> dict[str, Tensor]:
    return {k: torch.randn(v.shape) / 2 for k, v in NET.named_parameters()}


def start() -> Tensors:
    return {"w": torch.randn(3, 2), "b": torch.randn(4)}


RULES: dict[str, tuple[Optimizer, str, Any]] = {
    "a tensor": (Gains(), "gains", lambda: torch.tensor([0.1, -0.05])),
    "a module": (Network(), "net", weights),
    "a module, and a value in its place": (Network(net={"0.weight": 7.0, "0.bias": 1.0}), "net", weights),
    "wrapped": (ClipNorm(Network(), max_norm=1.0), "net", weights),
    "a part": (Partition({"a": (Network(), ["w"]), "rest": (Gains(gains=0.05), ["*b"])}), "a.net", weights),
}


@pytest.mark.parametrize("case", RULES)
def test_phi_opt_alone_is_enough_and_every_oracle_agrees(case: str) -> None:
    rule, name, make = RULES[case]
    verify(gimli.Problem(loss, loss, rule), start(), [0.3] * J, 0.5, phi_opt={name: make()}).assert_ok()


@pytest.mark.parametrize("case", RULES)
def test_the_result_has_the_form_that_was_given(case: str) -> None:
    rule, name, make = RULES[case]
    given = make()
    leaves = [v.requires_grad_() for v in (given.values() if isinstance(given, dict) else [given])]
    problem, theta_0 = gimli.Problem(loss, loss, rule), start()
    A = gimli.meta_gradient(problem, theta_0, [0.3] * J, 0.5, phi_opt={name: given}).A_opt[name]
    L = gimli.unroll(problem, theta_0, [0.3] * J, 0.5, phi_opt={name: given})
    if isinstance(given, dict):
        assert list(A) == list(given)
    for found, leaf in zip(A.values() if isinstance(A, dict) else [A], torch.autograd.grad(L, leaves), strict=True):
        assert torch.equal(found, leaf)
        assert bool(found.any())


def test_some_of_a_module_may_be_learned() -> None:
    theta_0, whole = start(), weights()
    learned = {"2.bias": whole["2.bias"]}
    problem = gimli.Problem(loss, loss, Network(net=whole))
    some = gimli.meta_gradient(problem, theta_0, [0.3] * J, 0.5, phi_opt={"net": learned}).A_opt["net"]
    every = gimli.meta_gradient(problem, theta_0, [0.3] * J, 0.5, phi_opt={"net": whole}).A_opt["net"]
    assert list(some) == ["2.bias"]
    assert torch.equal(some["2.bias"], every["2.bias"])
    alone = gimli.Problem(loss, loss, Network())
    given = gimli.meta_gradient(alone, theta_0, [0.3] * J, 0.5, phi_opt={"net": whole})
    assert torch.equal(gimli.meta_gradient(problem, theta_0, [0.3] * J, 0.5).val_loss, given.val_loss)


@pytest.mark.parametrize("chunk", [None, 2])
def test_over_tasks_shared_or_each_its_own(chunk: int | None) -> None:
    theta_0, shared, own = start(), weights(), {k: torch.randn(T, *v.shape) / 2 for k, v in weights().items()}
    batches, problem = [torch.rand(T) for _ in range(J + 1)], gimli.Problem(loss, loss, Network())

    def of(t: int, net: dict[str, Tensor]) -> dict[str, Tensor]:
        one = [b[t] for b in batches]
        result = gimli.meta_gradient(problem, theta_0, one[:-1], one[-1], phi_opt={"net": net})
        return dict(result.A_opt["net"])

    def over(net: Any) -> Any:
        return gimli.meta_gradient(
            problem, theta_0, batches[:-1], batches[-1], tasks=gimli.Tasks(T, "sum", chunk), phi_opt={"net": net}
        ).A_opt["net"]

    alone = [of(t, shared) for t in range(T)]
    torch.testing.assert_close(over(shared), {k: sum(A[k] for A in alone) for k in shared}, rtol=1e-11, atol=1e-13)
    alone = [of(t, {k: v[t] for k, v in own.items()}) for t in range(T)]
    expected = {k: torch.stack([A[k] for A in alone]) for k in shared}
    torch.testing.assert_close(over(gimli.per_task(own)), expected, rtol=1e-11, atol=1e-13)
    mixed = {k: gimli.per_task(v) if k == "2.bias" else shared[k] for k, v in own.items()}
    alone = [of(t, {**shared, "2.bias": own["2.bias"][t]}) for t in range(T)]
    expected = {k: torch.stack([A[k] for A in alone]) if k == "2.bias" else sum(A[k] for A in alone) for k in shared}
    torch.testing.assert_close(over(mixed), expected, rtol=1e-11, atol=1e-13)


def test_a_value_of_its_own_for_every_step() -> None:
    gains = torch.randn(J, 2) / 8
    problem, theta_0 = gimli.Problem(loss, loss, Gains()), start()
    verify(problem, theta_0, [0.3] * J, 0.5, phi_opt={"gains": gimli.per_step(gains)}).assert_ok()
    with pytest.raises(ArgumentError, match=r"a leading dimension of J = 3.*got shape \[2\], marked per_step"):
        gimli.meta_gradient(problem, theta_0, [0.3] * J, 0.5, phi_opt={"gains": gimli.per_step(torch.ones(2))})


@pytest.mark.parametrize(("rule", "name"), [(Gains(), "gains"), (Network(), "net"), (ClipNorm(Network(), 1.0), "net")])
@pytest.mark.parametrize("empty", [False, True])
def test_a_value_that_nobody_gives_is_asked_for(rule: Optimizer, name: str, empty: bool) -> None:
    phi_opt: dict[str, Any] = {name: {}} if empty else {}
    both = rf"{name}: expected a value.* Give it in phi_opt\['{name}'\], or \w+\({name}=…\)"
    with pytest.raises(ArgumentError, match=both):
        gimli.meta_gradient(gimli.Problem(loss, loss, rule), start(), [0.3], 0.5, phi_opt=phi_opt)


def test_no_range_at_construction_either() -> None:
    assert Gains(gains=-0.1).gains == -0.1
    assert check_pullback(Network(net=weights())).ok
    with pytest.raises(ArgumentError, match=r"Gains\(gains=…\): expected a value"):
        check_pullback(Gains())
