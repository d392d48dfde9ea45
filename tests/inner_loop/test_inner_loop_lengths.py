"""No step, one step, two runs that make one, losses along the way, and the ablation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.memory import Budget, Schedule
from gimli_core.memory.schedules.actions import Advance, Drop, Restore, Store, Sweep, Validate
from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW
from gimli_core.trees import tensors
from tests.compare import distance
from tests.problems import SCHEDULES, Rule, every_rule, every_schedule, starts


def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    return (torch.sin(theta["w"]) * batch).sum() + phi["l2"] * theta["w"].square().sum() ** 2


def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    return ((theta["w"] - batch) ** 2).sum() * (1 + phi["l2"])


def arguments(optimizer: Any, steps: int, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {
        "problem": gimli.Problem(train_loss, val_loss, optimizer),
        "theta_0": {"w": torch.randn(4, generator=generator)},
        "val_batch": torch.randn(4, generator=generator),
        "train_batches": torch.randn(9, 4, generator=generator),
        "steps": steps,
        "phi_loss": {"l2": torch.tensor(0.1)},
        **more,
    }


@every_schedule
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adagrad(), Adam(), AdamW()], ids=lambda o: type(o).__name__)
def test_no_steps(memory: Any, optimizer: Any) -> None:
    """B_0 is the plain gradient of val_loss, and only its explicit part reaches phi_loss."""
    args = arguments(optimizer, 0, phi_opt={"lr": 0.1}, memory=memory)
    result = gimli.meta_gradient(**args)
    w, batch = args["theta_0"]["w"], args["val_batch"]
    torch.testing.assert_close(result.B_0["w"], 2 * (w - batch) * 1.1, rtol=1e-15, atol=0)
    torch.testing.assert_close(result.A_loss["l2"], ((w - batch) ** 2).sum(), rtol=1e-15, atol=0)
    assert not result.A_opt["lr"].any()
    assert result.train_losses.shape == (0,)
    assert result.val_losses.shape == (1,)
    assert torch.equal(result.theta_J["w"], w)
    assert all(not g.any() for held in result.S_0.values() for g in held.values())


@every_schedule
def test_no_steps_of_an_empty_sequence(memory: Any) -> None:
    args = arguments(SGD(), 0, memory=memory, train_batches=[], phi_loss={"l2": 0.1})
    assert torch.equal(gimli.meta_gradient(**args).theta_J["w"], args["theta_0"]["w"])


@every_schedule
def test_one_step(memory: Any) -> None:
    """theta_1 = theta_0 - lr G_0: everything by hand."""
    args = arguments(SGD(), 1, phi_opt={"lr": 0.1}, memory=memory)
    result = gimli.meta_gradient(**args)
    w, x, y = args["theta_0"]["w"], args["train_batches"][0], args["val_batch"]
    square = w.square().sum()
    G = torch.cos(w) * x + 0.4 * square * w
    B_1 = 2 * (w - 0.1 * G - y) * 1.1
    hessian = torch.diag(-torch.sin(w) * x + 0.4 * square) + 0.8 * torch.outer(w, w)
    torch.testing.assert_close(result.A_opt["lr"], -(B_1 @ G), rtol=1e-13, atol=0)
    torch.testing.assert_close(result.B_0["w"], B_1 - 0.1 * hessian @ B_1, rtol=1e-13, atol=0)
    explicit = ((w - 0.1 * G - y) ** 2).sum()
    torch.testing.assert_close(result.A_loss["l2"], explicit - 0.1 * B_1 @ (4 * square * w), rtol=1e-13, atol=0)
    assert result.train_losses.shape == (1,)


@every_rule
def test_a_warm_state_continues_a_run(rule: Rule) -> None:
    """Two runs of 3 and 4 steps equal one of 7: forwards to the bit, backwards by the chain rule."""
    phi_opt = {name: torch.tensor(value) for name, value in rule.learned.items()}
    whole = gimli.meta_gradient(**arguments(rule.optimizer, 7, phi_opt=phi_opt))
    head = gimli.meta_gradient(**arguments(rule.optimizer, 3, phi_opt=phi_opt))
    later = {name: value for name, value in phi_opt.items() if name not in starts(rule)}
    args = arguments(rule.optimizer, 4, phi_opt=later, theta_0=head.theta_J, state_0=head.state_J)
    args["train_batches"] = args["train_batches"][3:]
    tail = gimli.meta_gradient(**args)
    assert torch.equal(tail.theta_J["w"], whole.theta_J["w"])
    assert all(
        torch.equal(a, b)
        for slot in whole.state_J
        for a, b in zip(*(tensors(r.state_J[slot]) for r in (tail, whole)), strict=True)
    )

    # dL/dphi = <B_3, dtheta_3/dphi> + <S_3, ds_3/dphi> + the later steps' own part. No loss sees s_3, so the
    # derivatives of the first run are taken by differences.
    def through(first_phi: dict[str, Tensor]) -> Tensor:
        mid = gimli.meta_gradient(**arguments(rule.optimizer, 3, phi_opt=first_phi))
        kept = [(S["w"], mid.state_J[slot]["w"]) for slot, S in tail.S_0.items() if S]
        return torch.stack([(bar * value).sum() for bar, value in [(tail.B_0["w"], mid.theta_J["w"]), *kept]]).sum()

    h = 1e-5
    for name, value in phi_opt.items():
        up, down = ({**phi_opt, name: value + sign * h} for sign in (1, -1))
        chained = (through(up) - through(down)) / (2 * h) + tail.A_opt.get(name, torch.tensor(0.0))
        # A central difference: h^2 = 1e-10 times third derivatives of up to some hundreds; rounding 1e-16 / h = 1e-11.
        torch.testing.assert_close(chained, whole.A_opt[name], rtol=2e-7, atol=2e-8, msg=name)


@every_schedule
def test_weights_of_J_and_of_J_plus_one(memory: Any) -> None:
    """L = Σ w_j L_val(theta_j), and its derivative is the sum of those of the runs of length j."""
    weights = [0.5, 0.0, -0.25, 1.5]
    rule = {"optimizer": Adam(), "phi_opt": {"lr": 0.1}, "memory": memory}
    singles = [gimli.meta_gradient(**arguments(**rule, steps=j)) for j in range(4)]
    for first in (0, 1):
        result = gimli.meta_gradient(**arguments(**rule, steps=3, val_weights=weights[first:]))
        chosen = list(zip(weights, singles, strict=True))[first:]
        for found, parts in (
            (result.val_loss, [w * s.val_loss for w, s in chosen]),
            (result.A_opt["lr"], [w * s.A_opt["lr"] for w, s in chosen]),
            (result.A_loss["l2"], [w * s.A_loss["l2"] for w, s in chosen]),
            (result.B_0["w"], [w * s.B_0["w"] for w, s in chosen]),
        ):
            assert distance(found, torch.stack(parts).sum(0)) < 1e-13
        evaluated = ~result.val_losses.isnan()
        assert evaluated.tolist() == [first == 0, False, True, True]
        assert all(torch.equal(result.val_losses[j], singles[j].val_loss) for j in range(4) if evaluated[j])


def test_no_weight_at_the_end() -> None:
    """L_val only in the middle: the steps after it have no say."""
    result = gimli.meta_gradient(
        **arguments(SGD(momentum=0.5), 4, val_weights=[0.0, 1.0, 0.0, 0.0], phi_opt={"lr": 0.1})
    )
    short = gimli.meta_gradient(**arguments(SGD(momentum=0.5), 2, phi_opt={"lr": 0.1}))
    assert torch.equal(result.B_0["w"], short.B_0["w"])
    assert torch.equal(result.A_opt["lr"], short.A_opt["lr"])


@every_schedule
def test_the_literal_recurrence(memory: Any) -> None:
    """With theta alone, lines 11-14 are exact for plain SGD, and wrong for whatever keeps a state."""

    def run(optimizer: Any, approximation: Any, steps: int = 4) -> gimli.MetaGradient:
        phi_opt = {"lr": 0.1}
        return gimli.meta_gradient(
            **arguments(optimizer, steps, phi_opt=phi_opt, memory=memory, approximation=approximation)
        )

    plain = [run(SGD(weight_decay=0.1), approximation) for approximation in (None, gimli.ThetaOnly())]
    assert torch.equal(plain[0].B_0["w"], plain[1].B_0["w"])
    assert torch.equal(plain[0].A_opt["lr"], plain[1].A_opt["lr"])
    for optimizer in (SGD(momentum=0.9), Adam(), Adagrad()):
        exact, literal = (run(optimizer, approximation) for approximation in (None, gimli.ThetaOnly()))
        assert torch.equal(exact.val_loss, literal.val_loss)
        assert distance(literal.B_0["w"], exact.B_0["w"]) > 1e-3
        once = [run(optimizer, approximation, 1) for approximation in (None, gimli.ThetaOnly())]
        assert torch.equal(once[0].B_0["w"], once[1].B_0["w"])  # one step meets S_J = 0 only
    assert "theta_only" in repr(run(SGD(momentum=0.9), gimli.ThetaOnly()))


def test_the_size_of_what_the_literal_recurrence_misses() -> None:
    """Two steps of momentum on w²/2: dtheta_2/dtheta_0 = (1 - lr)² - lr·momentum, of which the last term is missed."""
    lr, momentum = 0.1, 0.9

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"] ** 2 / 2

    problem = gimli.Problem(loss, lambda theta, phi, batch: theta["w"] * 1.0, SGD(lr=lr, momentum=momentum))
    run = [
        gimli.meta_gradient(
            problem, {"w": torch.tensor(1.0)}, lambda j: None, None, steps=2, approximation=approximation
        ).B_0["w"]
        for approximation in (None, gimli.ThetaOnly())
    ]
    torch.testing.assert_close(run[0], torch.tensor((1 - lr) ** 2 - lr * momentum), rtol=1e-15, atol=0)
    torch.testing.assert_close(run[1], torch.tensor((1 - lr) ** 2), rtol=1e-15, atol=0)


def test_forms_of_theta_and_batches() -> None:
    """An OrderedDict, a function of j, a list, a tensor, a NumPy array, and any whole number: the same run."""
    args = arguments(Adam(), 3)
    reference = gimli.meta_gradient(**args)
    batches = args["train_batches"]
    for changed in (
        {"theta_0": OrderedDict(args["theta_0"])},
        {"train_batches": batches.__getitem__},
        {"train_batches": list(batches)},
        {"train_batches": tuple(batches)[:3], "steps": None},
        {"steps": torch.arange(4).numpy()[-1]},
    ):
        assert torch.equal(gimli.meta_gradient(**{**args, **changed}).B_0["w"], reference.B_0["w"])


def test_results_are_detached_and_inputs_untouched() -> None:
    args = arguments(Adam(), 3, phi_opt={"lr": torch.tensor(0.1, requires_grad=True)})
    args["theta_0"]["w"].requires_grad_()
    before = args["theta_0"]["w"].detach().clone()
    result = gimli.meta_gradient(**args)
    for value in (result.val_loss, result.train_losses, result.B_0["w"], result.theta_J["w"], result.A_opt["lr"]):
        assert not value.requires_grad
    assert torch.equal(args["theta_0"]["w"].detach(), before)
    assert args["theta_0"]["w"].grad is None


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("memory", [m for m in SCHEDULES if not isinstance(m, Budget)], ids=str)
def test_schedules_are_sound_without_tensors(memory: Schedule, steps: int) -> None:
    """A simulator of the actions: points exist where they are asked for, each step is swept once, nothing is left."""
    point, stored, graphs, swept, validated = 0, set(), set(), [], False
    for action in memory.actions(steps):
        match action:
            case Advance(j, keep):
                assert point == j
                graphs |= {j} if keep.value == "graph" else set()
                point = j + 1
            case Store(j):
                assert point == j
                stored.add(j)
            case Restore(j):
                assert j in stored
                point = j
            case Drop(j):
                stored.remove(j)
            case Validate(j):
                assert point == j == steps
                assert not validated
                validated = True
            case Sweep(j):
                assert validated
                assert j in graphs or point == j
                graphs.discard(j)
                swept.append(j)
    assert validated
    assert swept == list(reversed(range(steps)))
    assert not stored
    assert not graphs
