"""iMAML's proximal problem: as the loss with its term written out, for every way to run it; and against the oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import SGD, Adam
from tests.compare import agree
from tests.problems import tanh_loss, tanh_network

STRENGTH = 0.7


def made(tasks: int | None = None, **more: Any) -> dict[str, Any]:
    """The proximal form of `tanh_network`, with a learned strength."""
    arguments = tanh_network(SGD(lr=0.1, momentum=0.5), tasks, **more)
    arguments["problem"] = gimli.proximal(arguments["problem"], "strength")
    arguments["phi_loss"] = {**arguments["phi_loss"], "strength": torch.tensor(STRENGTH)}
    return arguments


def written_out(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same by hand: the centre as entries of phi_loss."""
    names = list(arguments["theta_0"])

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        away = torch.stack([(theta[k] - phi[f"at {k}"]).square().sum() for k in names]).sum()
        return tanh_loss(theta, {"l2": phi["l2"]}, batch) + phi["strength"] / 2 * away

    centre = {f"at {k}": v for k, v in arguments["theta_0"].items()}
    problem = gimli.Problem(train_loss, tanh_loss, arguments["problem"].optimizer)
    return {**arguments, "problem": problem, "phi_loss": {**arguments["phi_loss"], **centre}}


@pytest.mark.parametrize("tasks", [None, 3])
@pytest.mark.parametrize("memory", [None, gimli.memory.Checkpoint(snapshots=2)])
def test_it_is_the_term_written_out_with_the_centre_s_share_in_B_0(tasks: int | None, memory: Any) -> None:
    arguments = made(tasks, memory=memory)
    found, plain = gimli.meta_gradient(**arguments), gimli.meta_gradient(**written_out(arguments))
    assert list(found.A_loss) == ["l2", "strength"]
    for k, B in found.B_0.items():
        torch.testing.assert_close(B, plain.B_0[k] + plain.A_loss[f"at {k}"], rtol=1e-12, atol=1e-14)
    for k, A in found.A_loss.items():
        torch.testing.assert_close(A, plain.A_loss[k], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.train_losses, plain.train_losses)


def test_tasks_in_chunks_and_from_starts_of_their_own() -> None:
    arguments = made(4)
    agree(gimli.meta_gradient(**arguments), gimli.meta_gradient(**{**arguments, "tasks": gimli.Tasks(4, chunk=3)}))
    starts = {k: torch.stack([v + t for t in range(4)]) for k, v in arguments["theta_0"].items()}
    every = gimli.meta_gradient(**{**arguments, "theta_0": gimli.per_task(starts)})
    for t in range(4):
        alone = {
            **arguments,
            "tasks": None,
            "theta_0": {k: v[t] for k, v in starts.items()},
            "train_batches": [(x[t], y[t]) for x, y in arguments["train_batches"]],
            "val_batch": tuple(part[t] for part in arguments["val_batch"]),
        }
        one = gimli.meta_gradient(**alone)
        for k, B in one.B_0.items():
            torch.testing.assert_close(every.B_0[k][t], B / 4, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tasks", [None, 2])
def test_every_oracle_agrees(tasks: int | None) -> None:
    report = gimli.verify(**made(tasks, steps=3))
    report.assert_ok()
    assert {c.family for c in report.checks} == {"autograd", "finite differences", "dense chain"}
    assert not any("centre" in c.name for c in report.checks)


@pytest.mark.parametrize("tasks", [None, 2])
def test_to_first_order_B_0_is_the_gradient_at_the_end(tasks: int | None) -> None:
    arguments = made(tasks, steps=3, approximation=gimli.FirstOrder())
    gimli.verify(**arguments).assert_ok()
    result = gimli.meta_gradient(**arguments)
    plain = gimli.meta_gradient(**{**written_out(arguments), "steps": 3})
    for k, B in plain.B_0.items():
        torch.testing.assert_close(result.B_0[k], B, rtol=1e-12, atol=1e-14)


def test_the_term_is_left_out_of_nothing() -> None:
    """A gradient without the centre's share is found wrong."""
    arguments = made()
    plain = gimli.meta_gradient(**written_out(arguments))
    report = gimli.verify(**arguments, claimed={"B_0": plain.B_0}, oracles=())
    assert {c.subject for c in report.disagreements} == {"claimed"}
    assert report.of("engine").ok


def test_unroll_fills_the_gradient_of_theta_0_and_of_lambda() -> None:
    arguments = made()
    theta_0 = {k: v.clone().requires_grad_() for k, v in arguments["theta_0"].items()}
    log_strength = torch.tensor(STRENGTH).log().requires_grad_()
    phi_loss = {**arguments["phi_loss"], "strength": log_strength.exp()}
    gimli.unroll(**{**arguments, "theta_0": theta_0, "phi_loss": phi_loss}).backward()
    result = gimli.meta_gradient(**arguments)
    for k, v in theta_0.items():
        torch.testing.assert_close(v.grad, result.B_0[k], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(log_strength.grad, STRENGTH * result.A_loss["strength"], rtol=1e-12, atol=1e-14)


def test_what_is_frozen_is_not_drawn_to_a_centre() -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], target: Tensor) -> Tensor:
        return (theta["w"] * theta["scale"] - target).square().sum()

    problem = gimli.proximal(gimli.Problem(loss, loss, SGD(lr=0.1)), 1.0)
    theta_0 = {"w": torch.ones(2), "scale": nn.Parameter(torch.tensor(2.0), requires_grad=False)}
    result = gimli.meta_gradient(problem, theta_0, lambda j: torch.zeros(2), torch.zeros(2), steps=2)
    assert list(result.B_0) == ["w"]
    assert result.A_loss == {}


def test_where_one_stands_still_the_other_is_a_plain_loss() -> None:
    """Of strength 0 nothing changes, to the bit."""
    arguments = tanh_network(Adam(lr=0.05))
    proximal = {**arguments, "problem": gimli.proximal(arguments["problem"], 0)}
    assert torch.equal(gimli.meta_gradient(**arguments).val_loss, gimli.meta_gradient(**proximal).val_loss)


@pytest.mark.parametrize(
    ("strength", "phi_loss", "message"),
    [
        (-1.0, {}, r"strength: expected a number >= 0, or the name of an entry of phi_loss; got -1\.0"),
        (True, {}, r"strength: expected .* got True"),
        (torch.tensor(1.0), {}, r"strength: expected .* A tensor goes into phi_loss, and its name here"),
        ("lam", {"lambda": torch.tensor(1.0)}, r"phi_loss: expected an entry 'lam'; got 'lambda'"),
        ("lam", None, r"phi_loss: expected an entry 'lam'; got none"),
        ("lam", {"lam": torch.ones(2)}, r"phi_loss\['lam'\]: expected one number; got shape \[2\]"),
        ("lam", {"lam": torch.tensor(-0.1)}, r"phi_loss\['lam'\]: expected lambda >= 0; got -0\.1"),
    ],
)
def test_a_strength_that_is_none(strength: Any, phi_loss: Any, message: str) -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"].square().sum()

    plain = gimli.Problem(loss, loss, SGD(lr=0.1))
    with pytest.raises(ArgumentError, match=message):
        gimli.meta_gradient(
            gimli.proximal(plain, strength), {"w": torch.ones(2)}, lambda j: None, None, steps=1, phi_loss=phi_loss
        )


def test_a_problem_that_is_none_or_proximal_already() -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"].square().sum()

    with pytest.raises(ArgumentError, match=r"problem: expected a gimli\.Problem; got function"):
        gimli.proximal(loss, 1.0)  # type: ignore[arg-type]
    once = gimli.proximal(gimli.Problem(loss, loss, SGD(lr=0.1)), 1.0)
    with pytest.raises(ArgumentError, match="one without a proximal term; got one that has it"):
        gimli.proximal(once, 1.0)


def test_a_loss_may_take_j_and_return_more() -> None:
    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any, j: Tensor) -> Any:
        loss = (theta["w"] - j).square().sum()
        return loss, {"plain": loss}

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        assert phi == {}
        return theta["w"].square().sum()

    problem = gimli.proximal(gimli.Problem(train_loss, val_loss, SGD(lr=0.1)), 1.0)
    call = (problem, {"w": torch.ones(2)}, lambda j: None, None)
    result = gimli.meta_gradient(*call, steps=3)
    assert torch.equal(result.train_aux["plain"][0], torch.tensor(2.0))
    gimli.verify(*call, steps=3).assert_ok()


def test_second_derivatives_go_through_both_places_of_theta_0() -> None:
    """Two steps of gradient descent on w⁴ and its term, and plain autograd."""

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"].pow(4).sum() / 4

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"].pow(3).sum()

    problem = gimli.proximal(gimli.Problem(train_loss, val_loss, SGD(lr=0.1)), "strength")
    w, strength = torch.tensor([0.7, -0.4], requires_grad=True), torch.tensor(0.8, requires_grad=True)
    L = gimli.unroll(problem, {"w": w}, lambda j: None, None, steps=2, phi_loss={"strength": strength}, derivatives=2)
    x = w
    for _ in range(2):
        x = x - 0.1 * (x**3 + strength * (x - w))
    for found, plain in ((L, x.pow(3).sum()),):
        first = [torch.autograd.grad(y, (w, strength), create_graph=True) for y in (found, plain)]
        second = [torch.autograd.grad(dw.square().sum() + ds, (w, strength)) for dw, ds in first]
        for a, b in zip((*first[0], *second[0]), (*first[1], *second[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
