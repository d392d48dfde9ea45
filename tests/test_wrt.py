"""`unroll(wrt=…)`: who gets a gradient, and who is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD
from gimli_core.record import Event


def made(model: nn.Module) -> dict[str, Any]:
    def loss(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        return functional_call(model, theta, batch).square().mean() * phi["scale"]

    return {
        "problem": gimli.Problem(loss, loss, SGD()),
        "theta_0": dict(model.named_parameters()),
        "train_batches": list(torch.randn(3, 5, 2)),
        "val_batch": torch.randn(5, 2),
        "phi_opt": {"lr": {"weight": torch.tensor(0.1, requires_grad=True), "bias": 0.1}},
        "phi_loss": {"scale": torch.tensor(0.7, requires_grad=True)},
    }


@pytest.mark.parametrize("derivatives", [1, 2])
def test_a_live_model_is_left_alone(derivatives: int) -> None:
    model = nn.Linear(2, 1)
    given = made(model)
    lr = given["phi_opt"]["lr"]["weight"]
    expected = gimli.meta_gradient(**given)
    loss = gimli.unroll(**given, wrt=("phi_opt",), derivatives=derivatives)
    if derivatives == 2:
        torch.autograd.grad(loss, lr, create_graph=True)[0].backward()
        assert lr.grad is not None
        lr.grad = None
    loss.backward()
    torch.testing.assert_close(lr.grad, expected.A_opt["lr"]["weight"].to(lr))
    assert given["phi_loss"]["scale"].grad is None
    assert all(p.grad is None for p in model.parameters())
    gimli.unroll(**given).backward()  # asked for, as by default
    torch.testing.assert_close({"weight": model.weight.grad, "bias": model.bias.grad}, expected.B_0)


def test_what_is_frozen_stays_frozen() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    given = {**made(model), "phi_opt": {"lr": torch.tensor(0.1, requires_grad=True)}}
    _, trajectory = gimli.unroll(**given, wrt=("phi_opt", "phi_loss"), with_trajectory=True)
    assert torch.equal(trajectory.theta_J["bias"], model.bias)
    assert not torch.equal(trajectory.theta_J["weight"], model.weight)


def test_nothing_asked_for_keeps_nothing_and_unknown_names_are_refused() -> None:
    given = made(nn.Linear(2, 1))
    assert not gimli.unroll(**given, wrt=()).requires_grad
    for bad in (("phi",), "phi_opt"):
        with pytest.raises(ArgumentError, match="wrt: expected a tuple of 'phi_opt'"):
            gimli.unroll(**given, wrt=bad)


class Counted(TorchDispatchMode):
    """How many operations were run within it."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("phi_loss", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": gimli.memory.StoreStates()},
        {"approximation": gimli.Truncated(2)},
        {"second_order": "reverse_over_forward"},
    ],
    ids=str,
)
def test_a_start_that_nobody_learns_costs_no_product(options: dict[str, Any], phi_loss: bool) -> None:
    """The same bits of all that is asked for, by fewer operations; who watches is shown line 14 whole."""
    model = nn.Linear(2, 1)
    given = {**made(model), **options}
    if not phi_loss:
        loss = given["problem"].train_loss
        given["problem"] = gimli.Problem(*[lambda theta, _, batch: loss(theta, {"scale": 0.7}, batch)] * 2, SGD())
        del given["phi_loss"]
    lr, scale = given["phi_opt"]["lr"]["weight"], given.get("phi_loss", {}).get("scale")
    learned = [lr] if scale is None else [lr, scale]
    gradients, operations, starts = [], [], []
    for more in ({}, {"wrt": ("phi_opt", "phi_loss")}):
        watched: list[Event] = []
        gradients.append(torch.autograd.grad(gimli.unroll(**given, **more, watch=watched.append), learned))
        starts.append(watched[-1].values["B"])
        L = gimli.unroll(**given, **more)
        with Counted() as counted:
            gradients.append(torch.autograd.grad(L, learned))
        operations.append(counted.operations)
    for of_run in gradients[1:]:
        assert all(map(torch.equal, of_run, gradients[0]))
    assert all(torch.equal(starts[0][k], v) for k, v in starts[1].items())
    assert operations[1] < operations[0]
