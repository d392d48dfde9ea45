"""`unroll`: one node of autograd's graph, whose backward runs the sweep once and is never silently wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.errors import RequirementError, SecondDerivativeError
from gimli_core.memory import Budget, StoreStates
from gimli_core.optimizers import SGD, Adam
from tests.problems import every_schedule


def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    return ((theta["w"] ** 2 - batch) ** 2 * phi["scale"].exp()).sum() + theta["b"].square().sum()


def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    return ((theta["w"] - batch) ** 2).sum() + phi["scale"].sum() * theta["b"].sum()


PROBLEM = gimli.Problem(train_loss, val_loss, SGD(momentum=0.5))


def arguments(**more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "theta_0": {"w": torch.rand(3, generator=generator), "b": torch.rand(2, generator=generator)},
        "train_batches": torch.rand(4, 3, generator=generator),
        "val_batch": torch.rand(3, generator=generator),
        "phi_opt": {"lr": torch.tensor(0.05), "momentum": {"w": torch.tensor(0.4)}},
        "phi_loss": {"scale": torch.rand(3, generator=generator)},
        **more,
    }


def leaves(args: dict[str, Any]) -> list[Tensor]:
    found = [
        *args["theta_0"].values(),
        args["phi_opt"]["lr"],
        args["phi_opt"]["momentum"]["w"],
        args["phi_loss"]["scale"],
    ]
    return [leaf.requires_grad_() for leaf in found]


@every_schedule
def test_backward_fills_every_gradient(memory: Any) -> None:
    """theta_0, phi_opt, phi_loss, a warm state, weights of losses along the way: as in `meta_gradient`."""
    state_0 = {"step": 2, "momentum_buffer": {"w": torch.rand(3), "b": torch.rand(2)}}
    weights = torch.tensor([0.5, 0.0, 0.2, 0.3])
    args = arguments(state_0=state_0, val_weights=weights, memory=memory)
    expected = gimli.meta_gradient(PROBLEM, **args)
    tied = [
        *leaves(args),
        *(held.requires_grad_() for held in state_0["momentum_buffer"].values()),
        weights.requires_grad_(),
    ]
    loss, trajectory = gimli.unroll(PROBLEM, **args, with_trajectory=True)
    assert all(t.grad is None for t in tied)
    loss.backward()
    assert torch.equal(loss, expected.val_loss)
    assert torch.equal(trajectory.theta_J["w"], expected.theta_J["w"])
    assert not trajectory.theta_J["w"].requires_grad
    for name, v in args["theta_0"].items():
        assert torch.equal(v.grad, expected.B_0[name])
    assert torch.equal(args["phi_opt"]["lr"].grad, expected.A_opt["lr"])
    assert torch.equal(args["phi_opt"]["momentum"]["w"].grad, expected.A_opt["momentum"]["w"])
    assert torch.equal(args["phi_loss"]["scale"].grad, expected.A_loss["scale"])
    for name, v in state_0["momentum_buffer"].items():
        assert torch.equal(v.grad, expected.S_0["momentum_buffer"][name])
    # dL/dw_j = L_val(theta_j): also where w_j is 0, since it is learned.
    problem_at = [gimli.meta_gradient(PROBLEM, **{**args, "val_weights": None}, steps=j).val_loss for j in (1, 2, 3, 4)]
    torch.testing.assert_close(weights.grad, torch.stack(problem_at), rtol=1e-14, atol=0)


@pytest.mark.parametrize("first", [0, 1])
def test_learned_weights_as_single_tensors(first: int) -> None:
    """J of them start at theta_1, J + 1 at theta_0."""
    weights = [torch.tensor(float(j % 2), requires_grad=True) for j in range(first, 5)]
    gimli.unroll(PROBLEM, **arguments(val_weights=weights)).backward()
    for j, w in enumerate(weights, start=first):
        expected = gimli.meta_gradient(PROBLEM, **arguments(steps=j)).val_loss
        torch.testing.assert_close(w.grad, expected, rtol=1e-14, atol=0)


def test_whatever_made_the_inputs_gets_its_gradient() -> None:
    """log_lr, a hypernetwork for theta_0, a network for the loss weights."""
    log_lr = torch.tensor(-3.0, requires_grad=True)
    hypernetwork, weigher = nn.Linear(2, 5), nn.Linear(1, 3)
    made = hypernetwork(torch.ones(2))
    args = arguments(
        theta_0={"w": made[:3], "b": made[3:]},
        phi_opt={"lr": log_lr.exp()},
        phi_loss={"scale": weigher(torch.ones(1))},
    )
    gimli.unroll(PROBLEM, **args).backward()
    result = gimli.meta_gradient(PROBLEM, **args)
    torch.testing.assert_close(log_lr.grad, result.A_opt["lr"] * log_lr.detach().exp(), rtol=1e-15, atol=0)
    B_0 = torch.cat([result.B_0["w"], result.B_0["b"]])
    torch.testing.assert_close(hypernetwork.bias.grad, B_0, rtol=1e-15, atol=0)
    torch.testing.assert_close(hypernetwork.weight.grad, B_0[:, None].expand(5, 2), rtol=1e-15, atol=0)
    torch.testing.assert_close(weigher.bias.grad, result.A_loss["scale"], rtol=1e-15, atol=0)


def test_a_learned_loss_network_in_phi_loss() -> None:
    """A network whose parameters are phi_loss, called inside the loss."""
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def learned(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(critic, phi, (theta["w"] * batch,)).square().mean() + theta["b"].square().sum()

    problem = gimli.Problem(learned, lambda theta, phi, batch: (theta["w"] - batch).square().sum(), Adam())
    args = arguments(phi_loss=dict(critic.named_parameters()), phi_opt={"lr": 0.1})
    gimli.unroll(problem, **args).backward()
    result = gimli.meta_gradient(problem, **args)
    assert all(torch.equal(p.grad, result.A_loss[k]) for k, p in critic.named_parameters())
    assert any(bool(p.grad.any()) for p in critic.parameters())


@every_schedule
def test_the_sweep_runs_once(memory: Any) -> None:
    calls = {"count": 0}

    def counting(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        calls["count"] += 1
        return train_loss(theta, phi, batch)

    args = arguments(memory=memory, check=False)
    tied = leaves(args)
    loss = gimli.unroll(gimli.Problem(counting, val_loss, SGD(momentum=0.5)), **args)
    assert calls["count"] == 4 or isinstance(memory, Budget)  # which runs two steps to measure them
    first = torch.autograd.grad(loss, tied, retain_graph=True)
    after_one = calls["count"]
    assert after_one == 4 or memory.replays
    second = torch.autograd.grad(loss, tied, retain_graph=True)
    third = torch.autograd.grad(3 * loss, tied)
    assert calls["count"] == after_one
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(3 * a, c)


def test_without_retain_graph_a_second_backward_is_refused() -> None:
    args = arguments()
    leaves(args)
    loss = gimli.unroll(PROBLEM, **args)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_sums_of_unrolls() -> None:
    """Two tasks that share phi, and one that counts double; gradients add up, in one backward or in several."""
    args = arguments()
    tied = leaves(args)
    other = {**args, "train_batches": 1 - args["train_batches"]}
    singly = [torch.autograd.grad(gimli.unroll(PROBLEM, **one), tied) for one in (args, other)]
    together = torch.autograd.grad(gimli.unroll(PROBLEM, **args) + 2 * gimli.unroll(PROBLEM, **other), tied)
    for a, b, both in zip(*singly, together, strict=True):
        assert torch.equal(a + 2 * b, both)


def test_only_some_inputs_require_grad() -> None:
    args = arguments()
    lr = args["phi_opt"]["lr"].requires_grad_()
    gimli.unroll(PROBLEM, **args).backward()
    assert torch.equal(lr.grad, gimli.meta_gradient(PROBLEM, **args).A_opt["lr"])
    assert args["theta_0"]["w"].grad is None
    plain = gimli.unroll(PROBLEM, **arguments())
    assert not plain.requires_grad


def test_no_grad_and_detached_use() -> None:
    args = arguments()
    leaves(args)
    with torch.no_grad():
        loss = gimli.unroll(PROBLEM, **args)
    assert not loss.requires_grad
    assert torch.equal(loss, gimli.meta_gradient(PROBLEM, **args).val_loss)


def test_one_tensor_in_two_places() -> None:
    shared = torch.tensor(0.1, requires_grad=True)
    args = arguments(phi_opt={"lr": shared, "weight_decay": shared})
    gimli.unroll(PROBLEM, **args).backward()
    A_opt = gimli.meta_gradient(PROBLEM, **args).A_opt
    torch.testing.assert_close(shared.grad, A_opt["lr"] + A_opt["weight_decay"], rtol=1e-15, atol=0)


def test_pairs_marks_and_numbers() -> None:
    """betas as a pair, a marked schedule, and numbers beside tensors."""
    beta2 = torch.tensor(0.9, requires_grad=True)
    lr = torch.full((4,), 0.1, requires_grad=True)
    problem = gimli.Problem(train_loss, val_loss, Adam())
    args = arguments(phi_opt={"betas": (0.8, beta2), "lr": gimli.per_step(lr), "eps": 1e-3})
    gimli.unroll(problem, **args).backward()
    A_opt = gimli.meta_gradient(problem, **args).A_opt
    assert torch.equal(beta2.grad, A_opt["betas"][1])
    assert torch.equal(lr.grad, A_opt["lr"])


def test_float32_inputs_get_float32_gradients() -> None:
    lr = torch.tensor(0.05, requires_grad=True)  # float64 beside a float32 theta
    args = arguments(phi_opt={"lr": lr}, phi_loss={"scale": torch.rand(3, dtype=torch.float32, requires_grad=True)})
    args["theta_0"] = {k: v.float().requires_grad_() for k, v in args["theta_0"].items()}
    args["train_batches"], args["val_batch"] = args["train_batches"].float(), args["val_batch"].float()
    loss = gimli.unroll(PROBLEM, **args)
    assert loss.dtype == torch.float32
    loss.backward()
    assert lr.grad is not None
    assert lr.grad.dtype == torch.float64
    assert {v.grad.dtype for v in args["theta_0"].values()} == {torch.float32}


def test_create_graph_is_harmless_and_a_second_derivative_is_refused() -> None:
    args = arguments()
    tied = leaves(args)
    expected = torch.autograd.grad(gimli.unroll(PROBLEM, **args), tied)
    found = torch.autograd.grad(gimli.unroll(PROBLEM, **args), tied, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    for gradient in found:
        with pytest.raises(SecondDerivativeError, match="unroll: expected one derivative"):
            gradient.sum().backward(retain_graph=True)


def test_a_second_derivative_through_the_arriving_gradient_is_refused() -> None:
    """d/dscale of d(scale · L)/dlr: what arrives at the node requires grad itself."""
    args = arguments()
    lr = args["phi_opt"]["lr"].requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(scale * gimli.unroll(PROBLEM, **args), lr, create_graph=True)
    with pytest.raises(SecondDerivativeError):
        torch.autograd.grad(gradient, scale)


@every_schedule
@pytest.mark.parametrize("which", range(5))
def test_an_input_changed_in_place_is_noticed(memory: Any, which: int) -> None:
    args = arguments(memory=memory)
    tied = leaves(args)
    loss = gimli.unroll(PROBLEM, **args)
    with torch.no_grad():
        tied[which].mul_(1.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("where", ["train_loss", "val_loss", "optimizer", "train_batches", "val_batch"])
def test_stray_tensors_are_refused(where: str) -> None:
    """A tensor that requires grad but is no argument would be left without its gradient."""
    stray = torch.tensor(0.3, requires_grad=True)
    args = arguments()
    if where in args:
        args[where] = args[where] * stray
    problem = gimli.Problem(
        (lambda theta, phi, batch: train_loss(theta, phi, batch) * stray) if where == "train_loss" else train_loss,
        (lambda theta, phi, batch: val_loss(theta, phi, batch) * stray) if where == "val_loss" else val_loss,
        SGD(lr=0.1, momentum=0.5, weight_decay=stray if where == "optimizer" else 0.0),
    )
    with pytest.raises(RequirementError, match="require"):
        gimli.unroll(problem, **args)
    if where in args:  # a batch is an argument, which meta_gradient holds constant
        assert list(gimli.meta_gradient(problem, **args).A_loss) == ["scale"]
        return
    with pytest.raises(RequirementError, match=r"requires? grad"):
        gimli.meta_gradient(problem, **args)
    assert list(gimli.meta_gradient(problem, **args, check=False).A_loss) == ["scale"]


def test_state_between_forward_and_backward() -> None:
    """An outer optimizer step between two unrolls does not disturb the first, if it is swept before."""
    args = arguments(memory=StoreStates())
    tied = leaves(args)
    optimizer = torch.optim.Adam(tied, lr=0.01)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = gimli.unroll(PROBLEM, **args)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[0] > seen[1] > seen[2]


def test_gradcheck() -> None:
    """torch's own finite differences, through log_lr and theta_0."""
    args = arguments()

    def function(log_lr: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        changed = {
            "theta_0": {**args["theta_0"], "w": w},
            "phi_opt": {"lr": log_lr.exp()},
            "phi_loss": {"scale": scale},
        }
        result: Tensor = gimli.unroll(PROBLEM, **{**args, **changed})
        return result

    inputs = (torch.tensor(-3.0), args["theta_0"]["w"], args["phi_loss"]["scale"])
    assert torch.autograd.gradcheck(function, [t.detach().clone().requires_grad_() for t in inputs])
