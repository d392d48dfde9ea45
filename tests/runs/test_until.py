"""until=: an inner loop that ends by itself is one of so many steps, for one loop and for tasks, each at its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError, NotReachedError
from gimli_core.memory import Checkpoint, StoreStates
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD, Adam
from tests.compare import assert_same
from tests.optimizers.rules import PlainAdam

T, J = 3, 60
CURVATURE = torch.tensor([1.0, 0.5, 2.0])


def loss(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
    return ((batch * theta["w"] - 1) ** 2).sum() / 2 + phi["l2"].exp() * (theta["w"] ** 2).sum() + theta["c"] ** 4


def given(rule: Any = None, tasks: bool = False) -> dict[str, Any]:
    scale = torch.outer(torch.tensor([1.0, 0.8, 1.5]), torch.ones(4)) if tasks else torch.ones(4)
    return {
        "problem": gimli.Problem(loss, loss, rule or SGD(momentum=0.3)),
        "theta_0": {"w": torch.linspace(-1, 1, 4), "c": torch.tensor(0.5)},
        "train_batches": lambda j: scale,
        "val_batch": scale + 0.1,
        "steps": J,
        "phi_opt": {"lr": 0.3},
        "phi_loss": {"l2": torch.tensor(-2.0)},
    }


UNTILS = {
    "gradient": gimli.Until(grad_norm=0.1),
    "loss": gimli.Until(loss_change=1e-3),
    "either": gimli.Until(grad_norm=0.1, loss_change=1e-3),
    "function": lambda j, loss, theta, G: theta["c"].abs() < 0.3,
}


def steps_by_hand(made: dict[str, Any], until: Any) -> int:
    """J, by asking after every step of the whole run."""
    theta, before = None, None
    for j in range(J):
        steps = gimli.adapt(
            made["problem"],
            made["theta_0"],
            made["train_batches"],
            steps=j,
            phi_opt=made["phi_opt"],
            phi_loss=made["phi_loss"],
        )
        theta = {k: v.clone().requires_grad_() for k, v in steps.theta_J.items()}
        value = loss(theta, made["phi_loss"], made["train_batches"](j))
        G = dict(zip(theta, torch.autograd.grad(value, list(theta.values())), strict=True))
        norm = torch.cat([g.reshape(-1) for g in G.values()]).norm()
        test = until if callable(until) else (until.test or (lambda *_: False))
        change = float("inf") if before is None else abs(value.item() - before)
        if not callable(until) and (norm <= (until.grad_norm or -1) or change <= (until.loss_change or -1)):
            return j
        if test(j, value, theta, G):
            return j
        before = value.item()
    raise AssertionError("never met")


@pytest.mark.parametrize("until", UNTILS.values(), ids=UNTILS)
def test_it_is_the_run_of_so_many_steps(until: Any) -> None:
    made = given()
    steps = steps_by_hand(made, until)
    assert 0 < steps < J
    for memory in (None, StoreStates(), Checkpoint(2)):
        found = gimli.meta_gradient(**made, until=until, memory=memory)
        assert_same(found, gimli.meta_gradient(**{**made, "steps": steps}, memory=memory))
    adapted = gimli.adapt(**{k: v for k, v in made.items() if k != "val_batch"}, until=until)
    torch.testing.assert_close(adapted.theta_J, found.theta_J, rtol=0, atol=0)


def test_random_numbers_are_those_of_the_run_alone() -> None:
    def noisy(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
        return loss(theta, phi, batch * (1 + 0.01 * torch.randn(4)))

    made = given()
    made["problem"] = gimli.Problem(noisy, noisy, SGD(momentum=0.3))
    torch.manual_seed(1)
    found = gimli.meta_gradient(**made, until=gimli.Until(grad_norm=0.3))
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert_same(found, gimli.meta_gradient(**{**made, "steps": len(found.train_losses)}))
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("rule", [SGD(momentum=0.3), Adam(eps=0.1), PlainAdam(eps=0.1)], ids=["sgd", "adam", "derived"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_each_task_ends_by_itself(rule: Any, chunk: int | None) -> None:
    made, until = given(rule, tasks=True), gimli.Until(grad_norm=0.2)
    together = gimli.meta_gradient(**made, until=until, tasks=gimli.Tasks(T, "sum", chunk))
    scale = made["train_batches"](0)
    alone = [
        gimli.meta_gradient(
            **{**made, "train_batches": lambda j, t=t: scale[t], "val_batch": made["val_batch"][t]}, until=until
        )
        for t in range(T)
    ]
    taken = [len(one.train_losses) for one in alone]
    assert len(set(taken)) > 1
    assert together.task_steps.tolist() == taken
    for name in ("A_opt", "A_loss", "B_0"):
        expected = {k: sum(getattr(one, name)[k] for one in alone) for k in getattr(together, name)}
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-10, atol=1e-13)
    for t, one in enumerate(alone):
        torch.testing.assert_close(together.theta_J["w"][t], one.theta_J["w"], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(together.train_losses[: taken[t], t], one.train_losses, rtol=1e-12, atol=1e-14)
        assert together.train_losses[taken[t] :, t].isnan().all()
    through = gimli.unroll(
        **{**made, "phi_opt": {"lr": (lr := torch.tensor(0.3, requires_grad=True))}},
        until=until,
        tasks=gimli.Tasks(T, "sum", chunk),
    )
    through.backward()
    torch.testing.assert_close(lr.grad, together.A_opt["lr"], rtol=1e-12, atol=0)


def test_met_at_once_there_is_no_step() -> None:
    found = gimli.meta_gradient(**given(), until=gimli.Until(grad_norm=1e3))
    assert len(found.train_losses) == 0
    assert found.A_opt["lr"] == 0


def test_never_met_is_an_error_that_says_how_far_it_came() -> None:
    made = {**given(), "steps": 4}
    with pytest.raises(NotReachedError, match=r"until: expected to be met within 4 steps; got ‖G‖ = .* at step 3"):
        gimli.meta_gradient(**made, until=gimli.Until(grad_norm=1e-12))
    made = {**given(tasks=True), "steps": 12}
    made["train_batches"] = lambda j: torch.outer(torch.tensor([1.0, 0.2, 1.1]), torch.ones(4))
    with pytest.raises(NotReachedError, match=r"in \d of 3 tasks"):
        gimli.meta_gradient(**made, until=gimli.Until(grad_norm=1e-3), tasks=T)


def test_never_met_may_be_said_to_be_fine() -> None:
    made = {**given(), "steps": 4}
    loosely = gimli.meta_gradient(**made, until=gimli.Until(grad_norm=1e-12, strict=False))
    assert_same(loosely, gimli.meta_gradient(**made))


@pytest.mark.parametrize(
    ("until", "more", "message"),
    [
        (1e-6, {}, "until: expected a gimli.Until, a function or None"),
        (lambda j, loss, theta, G: 3.0, {}, r"Until\(test=…\): expected a bool"),
        (
            gimli.Until(grad_norm=1.0),
            {"val_weights": [0.0] * (J - 1) + [1.0]},
            "val_weights: expected None where until=",
        ),
    ],
)
def test_what_cannot_be_is_refused(until: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        gimli.meta_gradient(**given(), **more, until=until)


def test_a_tolerance_is_a_number_that_is_not_negative() -> None:
    for bad in ({"grad_norm": -1.0}, {"loss_change": float("nan")}, {}, {"test": 3}):
        with pytest.raises(ArgumentError, match="Until"):
            gimli.Until(**bad)
