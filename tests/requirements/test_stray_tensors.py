"""A tensor that requires grad and is no argument: refused, by `meta_gradient` as by `unroll`, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.errors import RequirementError
from gimli_core.optimizers import SGD

Tensors = dict[str, Tensor]


class Hidden(nn.Module):
    """Parameters in a plain list, which functional_call does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.decayed = [self.w]

    def forward(self) -> Tensor:
        return (self.w - 1).square().sum() + sum(p.square().sum() for p in self.decayed)


@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates()])
@pytest.mark.parametrize("run", [gimli.meta_gradient, gimli.unroll])
def test_parameters_in_a_list_are_refused(run: Any, memory: Any) -> None:
    net = Hidden()

    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return functional_call(net, theta, ())

    problem = gimli.Problem(loss, loss, SGD(lr=0.125))
    with pytest.raises(
        RequirementError, match=r"val_loss: .*shape \[1\].*Detach them.*theta_0 or phi_loss.*check=False"
    ):
        run(problem, dict(net.named_parameters()), [None], None, memory=memory)


def test_without_the_check_it_is_held_constant() -> None:
    scale = torch.tensor(2.0, requires_grad=True)

    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return scale * theta["w"].square().sum()

    problem = gimli.Problem(loss, loss, SGD(lr=0.125))
    with pytest.raises(RequirementError, match="val_loss"):
        gimli.meta_gradient(problem, {"w": torch.ones(1)}, [None], None)
    found = gimli.meta_gradient(problem, {"w": torch.ones(1)}, [None], None, check=False)
    assert found.B_0["w"].item() == 1.0  # 2 (1 - 2 · 2 / 8)² from theta_0 = 1: 4 · 0.5 · 0.5
    assert scale.grad is None


def test_a_frozen_backbone_that_is_replaced_or_detached_is_none() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    backbone = {k: v.detach() for k, v in net.named_parameters() if k.startswith("0")}

    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return functional_call(net, {**backbone, **theta}, (batch,)).square().sum()

    theta_0 = {k: v for k, v in net.named_parameters() if k not in backbone}
    found = gimli.meta_gradient(
        gimli.Problem(loss, loss, SGD(lr=0.1)), theta_0, [torch.ones(3, 2)] * 2, torch.ones(3, 2)
    )
    assert list(found.B_0) == list(theta_0)
    assert all(p.requires_grad for p in net.parameters())


def penalty(theta: Tensors, phi: Tensors, x: Tensor) -> Tensor:
    (du,) = torch.autograd.grad((theta["w"] * x**2).sum(), x, create_graph=True)
    return (du - 1).square().sum()


@pytest.mark.parametrize("run", [gimli.meta_gradient, gimli.unroll])
@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates()])
def test_points_that_a_loss_makes_to_differentiate_at_are_none(run: Any, memory: Any) -> None:
    """As in a gradient penalty: the leaf is new at every call."""

    def loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return penalty(theta, phi, torch.ones(2, requires_grad=True))

    problem = gimli.Problem(loss, loss, SGD(lr=0.1))
    theta_0 = {"w": torch.ones(2, requires_grad=True)}
    found = run(problem, theta_0, [None] * 2, None, memory=memory)
    if run is gimli.unroll:
        found.backward()
    # 2u - 1 shrinks by 1 - 0.8 a step, and dL/dtheta_2 = 4 (2 theta_2 - 1): 4 · 0.04 · 0.04.
    B = theta_0["w"].grad if run is gimli.unroll else found.B_0["w"]
    assert torch.allclose(B, torch.full((2,), 0.0064, dtype=B.dtype))


def test_a_batch_of_points_to_differentiate_at_is_held_constant() -> None:
    x = torch.ones(2, requires_grad=True)
    problem = gimli.Problem(penalty, penalty, SGD(lr=0.1))
    found = gimli.meta_gradient(problem, {"w": torch.ones(2)}, [x] * 2, x)
    assert torch.allclose(found.B_0["w"], torch.full((2,), 0.0064).to(found.B_0["w"]))
    with pytest.raises(RequirementError, match="val_loss"):
        gimli.unroll(problem, {"w": torch.ones(2, requires_grad=True)}, [x] * 2, x)
