"""Gradients of exactly zero: the derivative exists there, and is what comes back; never nan, never a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.memory import StoreStates
from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from gimli_core.verification.oracles.plain_rules import flat_root
from tests.compare import distance, entries
from tests.problems import question

ADAPTIVE: dict[str, Any] = {
    "adagrad": lambda **h: Adagrad(**h),
    "adagrad-decaying": lambda **h: Adagrad(weight_decay=0.0, lr_decay=0.3, **h),
    "adam": lambda **h: Adam(**h),
    "amsgrad": lambda **h: Adam(amsgrad=True, **h),
    "adamw": lambda **h: AdamW(**h),
    "adamw-amsgrad": lambda **h: AdamW(amsgrad=True, weight_decay=0.0, **h),
}
adaptive = pytest.mark.parametrize("build", ADAPTIVE.values(), ids=ADAPTIVE)


@adaptive
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_first_step_from_zero_state(build: Any, maximize: bool, dtype: torch.dtype) -> None:
    """d theta'/dG = -lr/eps at G = 0 (and +lr/eps when maximizing), for eps as small as the defaults."""
    for lr, eps in ((0.5, 1e-2), (1e-3, 1e-8), (0.1, 1e-10)):
        optimizer = build(lr=lr, eps=eps, maximize=maximize)
        slope = optimizer.jacobians({"w": torch.zeros(3, dtype=dtype)})["theta"]["G"]["w"]
        expected = torch.full((3,), (lr if maximize else -lr) / eps, dtype=dtype)
        # Four roundings: the moment (1 - beta1) G, its bias correction, the rate, the quotient.
        torch.testing.assert_close(slope, expected, rtol=8 * torch.finfo(dtype).eps, atol=0)


@adaptive
def test_every_jacobian_is_finite_at_zero(build: Any) -> None:
    """theta' depends on no hyperparameter but through G = 0, and the second moments have slope 0."""
    optimizer: ElementwiseOptimizer = build(lr=0.1, eps=1e-8)
    jacobians = optimizer.jacobians({"w": torch.zeros(2)})
    assert all(bool(torch.isfinite(d["w"]).all()) for by_input in jacobians.values() for d in by_input.values() if d)
    for name in ("lr", "eps", *({"beta1", "beta2"} & set(optimizer.continuous()))):
        assert not jacobians["theta"][name]["w"].any(), name
    for slot in {"sum", "exp_avg_sq", "max_exp_avg_sq"} & set(optimizer.slots()):
        assert not jacobians[slot]["G"]["w"].any()


def dead_units(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A ReLU network, half of whose units never fire, and an embedding, half of whose rows are never read."""
    net = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)).to(dtype)
    with torch.no_grad():
        net[2].bias[:2] = -50.0
        net[2].bias[2:] = 1.0

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return ((functional_call(net, theta, (batch[0],)) - batch[1]) ** 2 * phi["scale"].exp()).mean()

    batches = [(torch.randint(0, 3, (5, 2)), torch.randn(5, 1, dtype=dtype)) for _ in range(6)]
    return {
        "problem": (loss, loss),
        "theta_0": dict(net.named_parameters()),
        "train_batches": batches[:-1],
        "val_batch": batches[-1],
        "steps": 5,
        "phi_loss": {"scale": torch.tensor(0.1, dtype=dtype)},
    }


@adaptive
@pytest.mark.parametrize("eps", [1e-2, 1e-8])
def test_dead_units_through_many_steps(build: Any, eps: float) -> None:
    """No nan anywhere, and autograd agrees once its square root is given slope 0 at 0."""
    made = dead_units()
    optimizer = build(lr=0.05, eps=eps)
    made["problem"] = gimli.Problem(*made["problem"], optimizer)
    made["phi_opt"] = dict(optimizer.hyperparameters())
    result = gimli.meta_gradient(**made)
    asked = question(made)
    oracle = autograd_gradient(asked, asked.environment(), root=flat_root)
    dead = result.B_0["0.weight"][3:]
    assert torch.equal(dead, torch.zeros_like(dead))  # never read, so never of consequence
    assert torch.equal(result.B_0["2.weight"][:2], torch.zeros(2, 6))
    stays = autograd_gradient(asked, asked.environment())
    assert any(bool(g.isnan().any()) for g in stays.gradient.values())  # what autograd gives by itself
    for key, found in entries(result, oracle.gradient).items():
        # float64 through five steps; at eps = 1e-8 the update is the sign of G, so that beside the sum over many
        # cancelling elements only the size of a single one counts.
        assert bool(torch.isfinite(found).all()), key
        assert distance(found, oracle.gradient[key]) < 1e-10, key


@adaptive
def test_finite_differences_at_a_gradient_of_zero(build: Any) -> None:
    """theta_0 is a stationary point, so that G = 0 in the first step: L has a slope there, and it is what we return."""
    optimizer = build(lr=0.05, eps=1e-2)
    target, heights = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.3, 1.0, 0.1])

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (heights * (theta["w"] - target - phi["shift"]) ** 2).sum() / 2

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] ** 2).sum()

    problem = gimli.Problem(train_loss, val_loss, optimizer)
    none = torch.zeros(3)

    def run(w: Tensor, shift: Tensor) -> gimli.MetaGradient:
        return gimli.meta_gradient(problem, {"w": w}, lambda j: None, None, steps=3, phi_loss={"shift": shift})

    def slope(along: Any, h: float) -> Tensor:
        return (run(*along(h)).val_loss - run(*along(-h)).val_loss) / (2 * h)

    result = run(target, none)
    for i, e in enumerate(torch.eye(3)):
        for found, along in (
            (result.B_0["w"][i], lambda h, e=e: (target + h * e, none)),
            (result.A_loss["shift"][i], lambda h, e=e: (target, h * e)),
        ):
            # L's second derivative jumps at G = 0, so that a central difference errs by O(|G| / eps). Here |G| grows up
            # to (lr / eps - 1)^3 = 64 times h. The extrapolation leaves (64 h / eps)^2 = 4e-7; rounding is 1e-15 / h.
            expected = 2 * slope(along, 0.5e-7) - slope(along, 1e-7)
            torch.testing.assert_close(found, expected, rtol=4e-7, atol=3e-8)


@adaptive
def test_zero_gradients_then_none(build: Any) -> None:
    """A unit that is dead for some steps and then wakes: the adjoint passes through the dead steps."""
    optimizer = build(lr=0.05, eps=1e-2)

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: float) -> Tensor:
        return batch * ((theta["w"] - phi["target"]) ** 2).sum()

    problem = gimli.Problem(train_loss, train_loss, optimizer)
    made = {
        "problem": problem,
        "theta_0": {"w": torch.tensor([0.5, -1.0])},
        "train_batches": [0.0, 0.0, 1.0, 0.0, 2.0],
        "val_batch": 1.0,
        "steps": 5,
        "phi_opt": dict(optimizer.hyperparameters()),
        "phi_loss": {"target": torch.tensor([1.0, 2.0])},
    }
    result = gimli.meta_gradient(**made)
    again = gimli.meta_gradient(**made, memory=StoreStates())
    assert torch.equal(result.B_0["w"], again.B_0["w"])
    asked = question(made)
    oracle = autograd_gradient(asked, asked.environment(), root=flat_root)
    for key, found in entries(result, oracle.gradient).items():
        assert distance(found, oracle.gradient[key]) < 1e-12, key


@adaptive
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_gradients_do_not_overflow(build: Any, dtype: torch.dtype) -> None:
    """G² underflows, or is subnormal: the slope stays near -lr/eps."""
    optimizer = build(lr=1e-3, eps=1e-8)
    hyper = {"w": {n: torch.tensor(float(v)) for n, v in optimizer.hyperparameters().items()}}
    theta, one = {"w": torch.zeros(2, dtype=dtype)}, {"w": torch.ones(2, dtype=dtype)}
    state = optimizer.initial_state(theta, hyper)
    for size in (1e-15, 1e-20, 1e-22, 1e-30, 1e-40):
        G = {"w": torch.tensor([size, -size], dtype=dtype)}
        V = optimizer.pullback(theta, state, G, hyper, one, optimizer.zero_adjoint(state), optimizer.continuous()).V[
            "w"
        ]
        # |G| / eps = 1e-7 or less moves the slope by nothing; a handful of roundings do.
        torch.testing.assert_close(
            V.double(), torch.full((2,), -1e5), rtol=max(8 * torch.finfo(dtype).eps, 1e-6), atol=0
        )


def test_jacobians_are_as_good_in_bfloat16() -> None:
    """beta2 = 0.999 would be 1 there, and its bias correction 0."""
    jacobians = Adam(lr=0.5, eps=0.25).jacobians({"w": torch.zeros(1, dtype=torch.bfloat16)})
    assert torch.equal(jacobians["theta"]["G"]["w"], torch.tensor([-2.0], dtype=torch.bfloat16))


def test_ties_of_the_running_maximum() -> None:
    """At max = v' the derivative goes half to each, as autograd has it. The numbers are exact in binary."""
    optimizer = Adam(lr=0.1, betas=(0.5, 0.75), eps=1e-2, amsgrad=True)
    G, v = torch.tensor([0.5, 0.25]), torch.tensor([0.125, 0.125])
    state = {
        "step": torch.tensor(2.0),
        "exp_avg": {"w": torch.tensor([0.1, 0.2])},
        "exp_avg_sq": {"w": v},
        "max_exp_avg_sq": {"w": 0.75 * v + 0.25 * G**2},
    }
    to_maximum = optimizer.jacobians({"w": torch.zeros(2)}, state, {"w": G})["max_exp_avg_sq"]
    assert torch.equal(to_maximum["max_exp_avg_sq"]["w"], torch.full((2,), 0.5))
    assert torch.equal(to_maximum["exp_avg_sq"]["w"], torch.full((2,), 0.375))


def test_sgd_has_nothing_singular() -> None:
    jacobians = SGD(lr=0.1, momentum=0.9, nesterov=True).jacobians({"w": torch.zeros(1)})
    torch.testing.assert_close(jacobians["theta"]["G"]["w"], torch.tensor([-0.19]), rtol=1e-15, atol=0)
