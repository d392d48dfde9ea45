"""Every form a hyperparameter can take: its derivative has the same form, and the right value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.meta_parameters.marks import PerStep
from gimli_core.optimizers import SGD, Adagrad, Adam
from gimli_core.verification.question import flatten
from tests.compare import distance

J = 4
THETA = {"body.w": (2, 3), "body.b": (3,), "head": ()}
GROUPS = {"body": ["body.*"], "head": ["head"]}

Read = Callable[[Any, int, str], Tensor]  # phi_opt's value, step, tensor name -> what that tensor uses


def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    hidden = torch.tanh(batch @ theta["body.w"] + theta["body.b"])
    return ((hidden.sum(-1) * theta["head"] - 1) ** 2).mean()


def plain_momentum(
    theta: dict[str, Tensor], batches: Tensor, lr: Read, momentum: Read, values: dict[str, Any]
) -> Tensor:
    """L after J steps of SGD with momentum, written for autograd; nothing of the engine is used."""
    buffer = {k: torch.zeros_like(v) for k, v in theta.items()}
    for j in range(J):
        G = torch.autograd.grad(train_loss(theta, {}, batches[j]), list(theta.values()), create_graph=True)
        for (k, w), g in zip(list(theta.items()), G, strict=True):
            buffer[k] = momentum(values["momentum"], j, k) * buffer[k] + g
            theta = {**theta, k: w - lr(values["lr"], j, k) * buffer[k]}
    return train_loss(theta, {}, batches[J])


def rates(*shape: int) -> Tensor:
    return 0.05 + 0.1 * torch.rand(shape)


def per_tensor(make: Callable[..., Tensor], *lead: int) -> dict[str, Tensor]:
    return {k: make(*lead, *shape) for k, shape in THETA.items()}


def group_of(k: str) -> str:
    return k.split(".")[0]


# name: (make a value, how tensor k reads it at step j)
FORMS: dict[str, tuple[Callable[[], Any], Read]] = {
    "one number": (lambda: rates(), lambda v, j, k: v),
    "per step": (lambda: rates(J), lambda v, j, k: v[j]),
    "per group, a vector": (lambda: rates(2), lambda v, j, k: v[list(GROUPS).index(group_of(k))]),
    "per group and step, a matrix": (lambda: rates(J, 2), lambda v, j, k: v[j, list(GROUPS).index(group_of(k))]),
    "per group, a dict": (lambda: {"head": rates(), "body": rates()}, lambda v, j, k: v[group_of(k)]),
    "per group and step, a dict": (lambda: {"body": rates(J), "head": rates(J)}, lambda v, j, k: v[group_of(k)][j]),
    "per tensor": (lambda: {k: rates() for k in THETA}, lambda v, j, k: v[k]),
    "per tensor and step": (lambda: {k: rates(J) for k in reversed(THETA)}, lambda v, j, k: v[k][j]),
    "per element": (lambda: per_tensor(rates), lambda v, j, k: v[k]),
    "per element and step": (lambda: per_tensor(rates, J), lambda v, j, k: v[k][j]),
    "marked per step": (
        lambda: gimli.per_step(per_tensor(rates, J)),
        lambda v, j, k: (v.value if isinstance(v, PerStep) else v)[k][j],
    ),
    "each its own": (
        lambda: {"body.w": rates(J, 2, 3), "body.b": gimli.per_step(rates(J)), "head": rates()},
        lambda v, j, k: v["head"] if k == "head" else (v[k].value if k == "body.b" else v[k])[j],
    ),
    "some tensors only": (
        lambda: {"body.b": rates()},
        lambda v, j, k: v[k] if k in v else torch.tensor(0.07),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_autograd(form: str) -> None:
    """lr and momentum in each form; A_opt has the structure of phi_opt."""
    make, read = FORMS[form]
    theta_0 = per_tensor(lambda *shape: torch.randn(shape))
    batches = torch.randn(J + 1, 5, 2)
    phi_opt = {"lr": make(), "momentum": make()}
    leaves = [leaf.requires_grad_() for leaf in flatten(phi_opt, ()).values()]
    optimizer = SGD(lr=0.07, momentum=0.07, groups=GROUPS)
    result = gimli.meta_gradient(
        gimli.Problem(train_loss, train_loss, optimizer), theta_0, batches, batches[J], steps=J, phi_opt=phi_opt
    )
    L = plain_momentum({k: v.requires_grad_() for k, v in theta_0.items()}, batches, read, read, phi_opt)
    found = flatten(result.A_opt, ())
    assert list(found) == list(flatten(phi_opt, ()))
    # float64 through four steps: some hundred roundings of 1e-16.
    for (path, gradient), expected in zip(found.items(), torch.autograd.grad(L, leaves), strict=True):
        assert distance(gradient, expected) < 1e-12, path
    bridged = gimli.unroll(
        gimli.Problem(train_loss, train_loss, optimizer), theta_0, batches, batches[J], steps=J, phi_opt=phi_opt
    )
    for gradient, leaf in zip(found.values(), torch.autograd.grad(bridged, leaves), strict=True):
        assert torch.equal(gradient, leaf)


def quadratic(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: float) -> Tensor:
    return sum(((v - batch) ** 2).sum() for v in theta.values())  # type: ignore[return-value]


def run(theta_0: dict[str, Tensor], optimizer: Any, phi_opt: Any, steps: int = 3, **more: Any) -> gimli.MetaGradient:
    problem = gimli.Problem(quadratic, quadratic, optimizer)
    return gimli.meta_gradient(problem, theta_0, lambda j: 0.5 + j, 1.0, steps=steps, phi_opt=phi_opt, **more)


def test_betas_as_a_pair_or_by_name() -> None:
    theta_0 = {"w": torch.randn(2)}
    beta1, beta2 = torch.tensor(0.8), torch.tensor([0.9, 0.95, 0.99])
    pair = run(theta_0, Adam(), {"betas": (beta1, beta2), "lr": 0.1})
    named = run(theta_0, Adam(), {"lr": 0.1, "beta2": beta2, "beta1": beta1})
    assert list(pair.A_opt) == ["betas", "lr"]
    assert isinstance(pair.A_opt["betas"], tuple)
    assert torch.equal(pair.A_opt["betas"][0], named.A_opt["beta1"])
    assert torch.equal(pair.A_opt["betas"][1], named.A_opt["beta2"])
    assert bool(named.A_opt["beta2"].any())


def test_what_phi_opt_leaves_out_keeps_the_optimizers_value() -> None:
    theta_0 = {"a": torch.randn(2), "b": torch.randn(2)}
    given = run(theta_0, SGD(lr={"a": 0.3, "b": 0.1}), {"lr": {"b": torch.tensor(0.1)}})
    whole = run(theta_0, SGD(), {"lr": {"a": 0.3, "b": 0.1}})
    assert list(given.A_opt["lr"]) == ["b"]
    assert torch.equal(given.A_opt["lr"]["b"], whole.A_opt["lr"]["b"])
    assert all(torch.equal(given.theta_J[k], whole.theta_J[k]) for k in theta_0)


@pytest.mark.parametrize("name", ["momentum", "dampening", "weight_decay"])
def test_a_meta_parameter_of_value_zero_is_used(name: str) -> None:
    """The number 0 switches a term off only where it is not a meta-parameter: its derivative is not 0."""
    theta_0 = {"w": torch.randn(2)}
    optimizer = SGD(lr=0.1, momentum=0.5) if name == "dampening" else SGD(lr=0.1)
    number, tensor = (run(theta_0, optimizer, {name: zero}).A_opt[name] for zero in (0.0, torch.tensor(0.0)))
    assert torch.equal(number, tensor)
    up, down = (run(theta_0, optimizer, {name: h}).val_loss for h in (1e-5, -1e-5))
    # A central difference: error h^2 = 1e-10 times the third derivative, and rounding 1e-16 / h = 1e-11.
    torch.testing.assert_close(number, (up - down) / 2e-5, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accumulators_keep_the_dtype_that_was_given(dtype: torch.dtype) -> None:
    theta_0 = {"w": torch.randn(2, dtype=torch.float32)}
    phi_opt = {"lr": torch.tensor(0.1, dtype=dtype), "momentum": torch.full((2,), 0.5), "weight_decay": 0.1}
    A_opt = run(theta_0, SGD(), phi_opt).A_opt
    assert A_opt["lr"].dtype == dtype
    assert A_opt["weight_decay"].dtype == torch.float64


def test_a_half_precision_hyperparameter_is_accumulated_in_float32() -> None:
    A_opt = run(
        {"w": torch.randn(2, dtype=torch.bfloat16)}, SGD(), {"lr": torch.tensor(0.1, dtype=torch.bfloat16)}
    ).A_opt
    assert A_opt["lr"].dtype == torch.float32


def test_a_vector_that_is_not_contiguous() -> None:
    lr = torch.rand(3, 2)[:, 1] * 0.1
    theta_0 = {"w": torch.randn(2)}
    assert torch.equal(run(theta_0, SGD(), {"lr": lr}).A_opt["lr"], run(theta_0, SGD(), {"lr": lr.clone()}).A_opt["lr"])


def test_an_expanded_schedule_has_a_derivative_per_step() -> None:
    lr, theta_0 = torch.tensor(0.1), {"w": torch.randn(2)}
    by_step = run(theta_0, SGD(), {"lr": lr.expand(3)}).A_opt["lr"]
    assert by_step.shape == (3,)
    torch.testing.assert_close(by_step.sum(), run(theta_0, SGD(), {"lr": lr}).A_opt["lr"], rtol=1e-13, atol=0)


W = {"w": torch.zeros(3)}
TWO = {"a": torch.zeros(3), "b": torch.zeros(3)}


@pytest.mark.parametrize(
    ("theta_0", "phi_opt", "steps", "says"),
    [
        (W, {"lr": torch.ones(3)}, 3, ["phi_opt['lr']", "one reading", "per step or one per element", "per_step"]),
        (W, {"lr": {"w": torch.ones(3)}}, 3, ["phi_opt['lr']['w']", "per step or one per element"]),
        (TWO, {"lr": torch.ones(3)}, 3, ["phi_opt['lr']", "per step or one per element"]),
        ({"w": torch.zeros(1)}, {"lr": torch.ones(1)}, 1, ["phi_opt['lr']", "per step or one per element"]),
        (W, {"lr": torch.ones(4)}, 3, ["phi_opt['lr']", "[3] (one per step)", "[4]"]),
        (W, {"lr": torch.ones(2, 1)}, 2, ["phi_opt['lr']", "[2, 3] (one per step and element)", "[2, 1]"]),
        (W, {"lr": torch.ones(0)}, 0, ["phi_opt['lr']", "J = 0"]),
        (W, {"lr": gimli.per_step(torch.ones(2))}, 3, ["phi_opt['lr']", "[3] (one per step)", "[2]"]),
        (W, {"lr": {"v": 0.1}}, 2, ["phi_opt['lr']", "'w'", "'v'"]),
        ({"weight": torch.zeros(1)}, {"lr": {"wieght": 0.1}}, 2, ["Did you mean 'weight'?"]),
        (W, {"learning_rate": 0.1}, 2, ["phi_opt", "'lr'", "'learning_rate'"]),
        (W, {"nesterov": 1.0}, 2, ["phi_opt['nesterov']", "continuous", "switch"]),
        (W, {"lr": torch.tensor(1)}, 2, ["phi_opt['lr']", "floating-point", "int64"]),
        (W, {"lr": True}, 2, ["phi_opt['lr']", "bool"]),
        (W, {"lr": [0.1, 0.2]}, 2, ["phi_opt['lr']", "list"]),
        (W, {"lr": None}, 2, ["phi_opt['lr']", "NoneType"]),
        (W, {"lr": float("nan")}, 2, ["phi_opt['lr']", "finite"]),
        (W, {"lr": torch.tensor([0.1, float("inf")])}, 2, ["phi_opt['lr']", "finite"]),
        (W, [("lr", 0.1)], 2, ["phi_opt", "a dict", "list"]),
    ],
)
def test_refused(theta_0: Any, phi_opt: Any, steps: int, says: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        run(theta_0, SGD(), phi_opt, steps)
    first_line = str(caught.value).splitlines()[0]
    assert all(part in first_line for part in says), first_line


@pytest.mark.parametrize(
    ("phi_opt", "says"),
    [
        ({"beta1": 1.0}, ["phi_opt['beta1']", "[0, 1)", "1.0"]),
        ({"betas": (0.9, torch.tensor([0.9, 1.5]))}, ["phi_opt['beta2']", "[0, 1)", "1.5"]),
        ({"betas": 0.9}, ["phi_opt['betas']", "pair", "float"]),
        ({"betas": (0.9, 0.99), "beta1": 0.9}, ["phi_opt['betas']", "beside"]),
        ({"betas": (0.9, 0.99, 0.999)}, ["phi_opt['betas']", "pair"]),
    ],
)
def test_refused_betas(phi_opt: Any, says: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        run(W, Adam(), phi_opt, 2)
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"all": "*"}, ["groups['all']", "a list", "'*'"]),
        ({"a": ["a"]}, ["'b'", "exactly one group", "none"]),
        ({"a": ["a", "b"], "b": ["b"]}, ["'b'", "exactly one group", "'a', 'b'"]),
    ],
)
def test_refused_groups(groups: Any, says: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        run(TWO, SGD(groups=groups), {"lr": 0.1}, 2)
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_per_step_settles_an_ambiguous_shape() -> None:
    theta_0 = {"w": torch.tensor([1.0, 2.0, 3.0])}
    schedule, elements = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, 0.2, 0.3])
    stepwise = run(theta_0, SGD(), {"lr": gimli.per_step(schedule)})
    by_element = run(theta_0, SGD(), {"lr": elements.expand(3, 3)})
    assert torch.equal(stepwise.theta_J["w"], run(theta_0, SGD(), {"lr": schedule[:, None].expand(3, 3)}).theta_J["w"])
    assert not torch.equal(stepwise.theta_J["w"], by_element.theta_J["w"])
    assert stepwise.A_opt["lr"].shape == (3,)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"lr: expected a value for every tensor of theta; got none for 'b'"):
        run(TWO, SGD(lr={"a": 0.1}), {"lr": {"a": 0.2}}, 2)


def test_the_initial_accumulator_in_every_form() -> None:
    """It acts once: of a schedule only the first entry matters."""
    theta_0 = {"w": torch.randn(2)}
    plain = run(theta_0, Adagrad(lr=0.5), {"initial_accumulator_value": 0.3}).A_opt["initial_accumulator_value"]
    steps = run(theta_0, Adagrad(lr=0.5), {"initial_accumulator_value": torch.full((3,), 0.3)})
    torch.testing.assert_close(
        steps.A_opt["initial_accumulator_value"], torch.stack([plain, 0 * plain, 0 * plain]), rtol=1e-14, atol=0
    )
    elements = run(theta_0, Adagrad(lr=0.5), {"initial_accumulator_value": torch.full((2,), 0.3)})
    torch.testing.assert_close(elements.A_opt["initial_accumulator_value"].sum(), plain, rtol=1e-14, atol=0)
